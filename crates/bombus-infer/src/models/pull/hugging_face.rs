//! Hugging Face: which of a repository's files is meant, its hash, and where it is.

use reqwest::Client;
use serde::Deserialize;

use super::download::{Source, get_json};
use super::{Place, PullConfig, PullError, Weights};

/// Quantisations in the order in which one is taken where none is asked for: small enough for most machines and close to the
/// original first.
const PREFERRED: [&str; 18] = [
    "Q4_K_M", "Q4_K_S", "Q4_K_XL", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "MXFP4", "Q5_K_M", "Q5_K_S", "Q5_0", "Q6_K",
    "Q8_0", "Q3_K_M", "Q3_K_L", "BF16", "F16", "F32",
];

/// A repository at one of its commits. Source: Hugging Face Hub API, `/api/models/REPO/revision/REV?blobs=true`.
#[derive(Debug, Deserialize)]
struct Repository {
    sha: String,
    #[serde(default)]
    siblings: Vec<RepositoryFile>,
}

#[derive(Debug, Clone, Deserialize)]
struct RepositoryFile {
    #[serde(rename = "rfilename")]
    path: String,
    lfs: Option<LargeFile>,
}

#[derive(Debug, Clone, Deserialize)]
struct LargeFile {
    sha256: String,
    size: u64,
}

/// Asks Hugging Face which file is meant. Returns where it comes from, and the file.
pub(super) async fn resolve(
    client: &Client,
    config: &PullConfig,
    repository: &str,
    quantization: Option<&str>,
) -> Result<(String, Weights), PullError> {
    let base = &config.hugging_face_url;
    let url = format!("{base}/api/models/{repository}/revision/main?blobs=true");
    let mut request = client.get(&url);
    if let Some(token) = &config.hugging_face_token {
        request = request.bearer_auth(token.reveal());
    }
    let found: Repository = get_json(config, request, &url).await.map_err(|error| refine(error, config, repository))?;
    if found.sha.is_empty() || !found.sha.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(PullError::Protocol { url, reason: "the commit's name is no hash".to_owned() });
    }
    let paths: Vec<&str> = found.siblings.iter().map(|file| file.path.as_str()).collect();
    let path = choose(&paths, quantization)
        .map_err(|reason| PullError::Reference { reference: format!("hf.co/{repository}"), reason })?;
    let large = found.siblings.iter().find(|file| file.path == path).and_then(|file| file.lfs.clone());
    let Some(LargeFile { sha256, size }) = large.filter(|large| super::super::store::is_sha256(&large.sha256)) else {
        return Err(PullError::Protocol { url, reason: format!("it tells no SHA-256 of {path}") });
    };
    let source = Source {
        url: format!("{base}/{repository}/resolve/{}/{}", found.sha, escape(path)),
        token: config.hugging_face_token.clone(),
    };
    let from = format!("{base}/{repository}/blob/{}/{path}", found.sha);
    Ok((from, Weights { sha256, size_bytes: size, place: Place::Web(source) }))
}

fn refine(error: PullError, config: &PullConfig, repository: &str) -> PullError {
    let base = &config.hugging_face_url;
    match error {
        PullError::Refused { url, status: status @ (401 | 403), .. } => {
            let hint = if config.hugging_face_token.is_some() {
                format!(
                    "{repository} does not exist, or the token in HF_TOKEN does not open it: see {base}/{repository}"
                )
            } else {
                format!(
                    "{repository} does not exist, or is gated or private: accept its terms at {base}/{repository} and set HF_TOKEN"
                )
            };
            PullError::Refused { url, status, hint }
        }
        PullError::Refused { status: 404, .. } => PullError::NotFound {
            source_name: "Hugging Face".to_owned(),
            reference: repository.to_owned(),
            detail: "status 404".to_owned(),
        },
        other => other,
    }
}

/// Chooses the GGUF file of a quantisation, or of the usual one.
fn choose<'a>(paths: &[&'a str], quantization: Option<&str>) -> Result<&'a str, String> {
    let mut models: Vec<&str> = paths.iter().copied().filter(|path| is_model(path)).collect();
    // Of several with the same quantisation the plainest name.
    models.sort_by_key(|path| (path.len(), *path));
    if models.is_empty() {
        return Err("the repository has no GGUF files: look for one whose name ends in -GGUF".to_owned());
    }
    let list = || models.join(", ");
    let (whole, split): (Vec<&str>, Vec<&str>) = models.iter().partition(|path| !is_split(path));
    let find = |wanted: &str| whole.iter().copied().find(|path| has_token(path, wanted));
    if let Some(wanted) = quantization {
        return find(wanted).ok_or_else(|| {
            if split.iter().any(|path| has_token(path, wanted)) {
                format!("{wanted} is split into several files, which is not supported; choose another of: {}", list())
            } else {
                format!("no file has the quantisation {wanted}; there are: {}", list())
            }
        });
    }
    let preferred = PREFERRED.iter().find_map(|wanted| find(wanted));
    match (preferred, whole.as_slice()) {
        (Some(path), _) => Ok(path),
        (None, [path]) => Ok(*path),
        (None, []) => Err(format!("all models in it are split into several files, which is not supported: {}", list())),
        (None, _) => Err(format!("add one of its quantisations to the name, as :QUANT; there are: {}", list())),
    }
}

/// Says whether a file is a language model, and not the eyes of one or the statistics it was quantised by.
fn is_model(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    lower.ends_with(".gguf") && !lower.contains("mmproj") && !lower.contains("imatrix")
}

/// Says whether a file is one of several, named `...-00001-of-00003.gguf`.
fn is_split(path: &str) -> bool {
    let stem = &path[..path.len() - ".gguf".len()];
    let mut parts = stem.rsplitn(4, '-');
    let mut is_number =
        || parts.next().is_some_and(|part| part.len() == 5 && part.bytes().all(|byte| byte.is_ascii_digit()));
    is_number() && stem.contains("-of-")
}

/// Says whether a file's name has a quantisation as a whole word, whatever its case: `Q4_K` is not in `model-Q4_K_M.gguf`.
fn has_token(path: &str, wanted: &str) -> bool {
    let (path, wanted) = (path.to_ascii_uppercase(), wanted.to_ascii_uppercase());
    path.match_indices(&wanted).any(|(start, _)| {
        let before = path[..start].bytes().next_back();
        let after = path[start + wanted.len()..].bytes().next();
        !before.is_some_and(|byte| byte.is_ascii_alphanumeric())
            && !after.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// Escapes what may stand in a file's name but not in a URL's path.
fn escape(path: &str) -> String {
    let mut escaped = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 7] = [
        "README.md",
        "mmproj-Q4_K_M.gguf",
        "model-Q8_0.gguf",
        "model-Q4_K_M.gguf",
        "model-UD-Q4_K_M.gguf",
        "model-IQ4_XS.gguf",
        "BF16/model-BF16-00001-of-00002.gguf",
    ];

    #[test]
    fn the_usual_quantisation_is_taken_unless_another_is_named() {
        assert_eq!(choose(&FILES, None), Ok("model-Q4_K_M.gguf"));
        assert_eq!(choose(&FILES, Some("q8_0")), Ok("model-Q8_0.gguf"));
        assert_eq!(choose(&FILES, Some("UD-Q4_K_M")), Ok("model-UD-Q4_K_M.gguf"));
        assert_eq!(choose(&["m.f16.gguf", "m.q8_0.gguf"], None), Ok("m.q8_0.gguf"));
        assert_eq!(choose(&["only.gguf"], None), Ok("only.gguf"));
    }

    #[test]
    fn a_quantisation_is_a_whole_word() {
        assert!(choose(&FILES, Some("Q4_K")).unwrap_err().contains("model-Q4_K_M.gguf"));
        assert!(choose(&FILES, Some("Q4_XS")).is_err());
    }

    #[test]
    fn what_cannot_be_chosen_says_what_there_is() {
        assert!(choose(&FILES, Some("BF16")).unwrap_err().contains("split"));
        assert!(choose(&["model.safetensors"], None).unwrap_err().contains("no GGUF"));
        assert!(choose(&["a.gguf", "b.gguf"], None).unwrap_err().contains("a.gguf, b.gguf"));
    }

    #[test]
    fn odd_file_names_are_escaped() {
        assert_eq!(escape("a b/ü#?.gguf"), "a%20b/%C3%BC%23%3F.gguf");
    }
}
