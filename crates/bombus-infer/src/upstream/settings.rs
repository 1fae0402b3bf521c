//! What the configuration says about a server: its address, its key, and what is sent with every request.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use super::UpstreamError;

/// Longest accepted key file; keys have some hundred bytes.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;

/// Where a key comes from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KeySource<'a> {
    /// The environment variable that holds it.
    pub(crate) variable: Option<&'a str>,
    /// The file that holds it, and nothing else.
    pub(crate) file: Option<&'a Path>,
}

impl KeySource<'_> {
    fn read(self) -> Result<Option<String>, UpstreamError> {
        let (key, place) = match (self.variable, self.file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(refuse("`api_key_env` and `api_key_file` are both set; keep one")),
            (Some(name), None) => {
                let key = std::env::var(name).map_err(|_| {
                    refuse(format!("`api_key_env` names the environment variable {name}, which is not set"))
                })?;
                (key, format!("the environment variable {name}"))
            }
            (None, Some(path)) => {
                let place = format!("the key file {}", path.display());
                let mut key = String::new();
                let file = File::open(path);
                let read = file.and_then(|file| file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut key));
                read.map_err(|error| refuse(format!("{place} cannot be read: {error}")))?;
                (key, place)
            }
        };
        match key.trim() {
            "" => Err(refuse(format!("{place} is empty; put the key there"))),
            key => Ok(Some(key.to_owned())),
        }
    }
}

/// Builds what is sent with every request: the configured headers, and the key as a bearer token unless an `Authorization` stands there.
///
/// # Errors
///
/// [`UpstreamError::Config`] where the key cannot be had, or a header is none.
pub(crate) fn headers(given: &BTreeMap<String, String>, key: KeySource<'_>) -> Result<HeaderMap, UpstreamError> {
    let mut headers = HeaderMap::new();
    let sensitive = |text: &str, name: &str| {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_| refuse(format!("the value of {name} has a character that headers cannot carry")))?;
        value.set_sensitive(true);
        Ok(value)
    };
    for (name, value) in given {
        let header: HeaderName = name.parse().map_err(|_| refuse(format!("{name:?} is not the name of a header")))?;
        headers.insert(header, sensitive(value, &format!("the header {name}"))?);
    }
    if let Some(key) = key.read()?
        && !headers.contains_key(AUTHORIZATION)
    {
        headers.insert(AUTHORIZATION, sensitive(&format!("Bearer {key}"), "the API key")?);
    }
    Ok(headers)
}

/// Reads the address of a server, to which paths are appended; with or without a slash at its end.
///
/// # Errors
///
/// [`UpstreamError::Config`] for anything but an `http` or `https` URL with a host and without credentials, query and fragment.
pub(crate) fn base_url(text: &str) -> Result<Url, UpstreamError> {
    let wrong = |what: &str| refuse(format!("`url` {what}; it looks like http://127.0.0.1:11434"));
    let mut url = Url::parse(text.trim()).map_err(|error| wrong(&format!("= {text:?} is not a URL ({error})")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("has credentials in it, which belong into `api_key_env`, `api_key_file` or `headers`"));
    }
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong(&format!("= {text:?} is not an http or https URL")));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong(&format!("= {text:?} has a query or a fragment")));
    }
    let path = format!("{}/", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

fn refuse(reason: impl Into<String>) -> UpstreamError {
    UpstreamError::Config { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: KeySource<'_>) -> Result<HeaderMap, String> {
        headers(&BTreeMap::new(), source).map_err(|error| error.to_string())
    }

    #[test]
    fn a_missing_variable_is_named() {
        let variable = "BOMBUS_TEST_KEY_THAT_NOBODY_SETS";
        let error = key(KeySource { variable: Some(variable), file: None }).unwrap_err();
        assert!(error.contains(variable), "{error}");
    }

    #[test]
    fn a_key_file_is_read_without_its_line_end_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "sk-abc\n").unwrap();
        let headers = key(KeySource { variable: None, file: Some(&path) }).unwrap();
        assert_eq!(headers[AUTHORIZATION], "Bearer sk-abc");
        assert!(!format!("{headers:?}").contains("sk-abc"));
        std::fs::write(&path, "\n").unwrap();
        assert!(key(KeySource { variable: None, file: Some(&path) }).unwrap_err().contains("empty"));
        assert!(key(KeySource { variable: Some("PATH"), file: Some(&path) }).unwrap_err().contains("both"));
    }

    #[test]
    fn a_header_that_is_none_is_refused_without_its_value() {
        let given = BTreeMap::from([("x-team".to_owned(), "a\nsecret".to_owned())]);
        let error = headers(&given, KeySource::default()).unwrap_err().to_string();
        assert!(error.contains("x-team") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn paths_are_appended_to_any_base() {
        let joined = |base: &str| base_url(base).unwrap().join("api/tags").unwrap().to_string();
        assert_eq!(joined("http://a:1"), "http://a:1/api/tags");
        assert_eq!(joined("http://a:1/x"), "http://a:1/x/api/tags");
        assert_eq!(joined("http://a:1/x//"), "http://a:1/x/api/tags");
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        for text in ["", "a:1", "127.0.0.1:11434", "ftp://a", "http://", "http://u:p@a", "http://a?x=1", "http://a#x"] {
            assert!(base_url(text).is_err(), "{text:?}");
        }
        assert!(!base_url("http://u:geheim@a").unwrap_err().to_string().contains("geheim"));
    }
}
