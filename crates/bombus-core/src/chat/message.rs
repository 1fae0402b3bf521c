use serde::{Deserialize, Serialize};

/// The author of a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
    /// The answer of a tool that the model called.
    Tool,
}

impl Role {
    /// Returns the name that chat templates and both HTTP dialects use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order. Empty for an assistant turn that only calls tools.
    pub content: Vec<Part>,
    /// The tools that an assistant turn calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// For [`Role::Tool`]: the [`ToolCall::id`] that this turn answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The participant's or the tool's name, where the client gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What an assistant turn thought before it spoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
}

impl Message {
    /// Builds a turn that consists of one text.
    #[must_use]
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Part::Text(text.into())],
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            thinking: None,
        }
    }

    /// Joins the text parts, each on lines of its own, skipping everything that is not text.
    #[must_use]
    pub fn joined_text(&self) -> String {
        let texts = self.content.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image(_) => None,
        });
        texts.collect::<Vec<_>>().join("\n")
    }
}

/// A piece of a [`Message`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Plain text.
    Text(String),
    /// A picture.
    Image(Image),
}

/// A picture inside a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Where it is.
    #[serde(flatten)]
    pub source: ImageSource,
    /// How closely the model is to look at it, in a word of `OpenAI`'s dialect: `low`, `high` or `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl From<ImageSource> for Image {
    fn from(source: ImageSource) -> Self {
        Self { source, detail: None }
    }
}

/// Where a picture is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageSource {
    /// The encoded bytes (PNG, JPEG, ...) with the media type that the client named.
    Data {
        /// Media type, for example `image/png`.
        media_type: String,
        /// The bytes in standard base64, as both dialects carry them.
        base64: String,
    },
    /// An address that the backend may fetch. Nodes themselves never fetch it.
    Url(String),
}

/// A call of a tool by the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Identifies the call within its conversation.
    pub id: String,
    /// Name of the [`super::Tool`].
    pub name: String,
    /// The arguments as JSON text, exactly as the model wrote them.
    pub arguments: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_of_one_turn_stand_on_lines_of_their_own() {
        let content = vec![
            Part::Text("What is this?".into()),
            Part::Image(ImageSource::Url("https://example.com/a.jpg".into()).into()),
            Part::Text("Answer briefly.".into()),
        ];
        let message = Message { content, ..Message::text(Role::User, "") };
        assert_eq!(message.joined_text(), "What is this?\nAnswer briefly.");
        assert_eq!(Message::text(Role::User, "alone").joined_text(), "alone");
    }

    #[test]
    fn pictures_without_a_detail_are_written_as_they_always_were() {
        let url = Image::from(ImageSource::Url("https://example.com/a.jpg".into()));
        let data = Image::from(ImageSource::Data { media_type: "image/png".into(), base64: "AAAA".into() });
        for (image, written) in [
            (url.clone(), json!({"url": "https://example.com/a.jpg"})),
            (data, json!({"data": {"media_type": "image/png", "base64": "AAAA"}})),
            (Image { detail: Some("low".into()), ..url }, json!({"url": "https://example.com/a.jpg", "detail": "low"})),
        ] {
            assert_eq!(serde_json::to_value(&image).unwrap(), written);
            assert_eq!(serde_json::from_value::<Image>(written).unwrap(), image);
        }
    }
}
