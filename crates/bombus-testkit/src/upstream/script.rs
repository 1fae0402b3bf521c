use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// How one request is answered. Begins with what comes first, and is told on by its methods; without an ending of its own the answer is
/// whole, and the connection stays open for the next request.
#[derive(Debug, Clone)]
pub struct Script {
    pub(super) head: Head,
    pub(super) steps: Vec<Step>,
    pub(super) ending: Ending,
}

#[derive(Debug, Clone)]
pub(super) enum Head {
    /// A proper head; the body follows in chunks.
    Status { status: u16, headers: Vec<(String, String)> },
    /// These bytes in place of a head; the steps follow without chunks.
    Raw(Vec<u8>),
    /// Nothing, ever.
    Hang,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A chunk of the body.
    Piece(Vec<u8>),
    /// Nothing for so long.
    Pause(Duration),
    /// Nothing until the test lets it go on.
    Await(CancellationToken),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The chunk that ends the body.
    Whole,
    /// Nothing, and the connection stays open.
    Hang,
    /// The connection closes without the chunk that ends the body.
    Cut,
    /// The connection is reset (RST).
    Reset,
}

impl Script {
    fn new(head: Head) -> Self {
        Self { head, steps: Vec::new(), ending: Ending::Whole }
    }

    fn status(status: u16, content_type: &str) -> Self {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        Self::new(Head::Status { status, headers })
    }

    /// A JSON document.
    #[must_use]
    pub fn json(status: u16, document: &Value) -> Self {
        Self::status(status, "application/json").piece(document.to_string())
    }

    /// A text.
    #[must_use]
    pub fn text(status: u16, text: &str) -> Self {
        Self::status(status, "text/plain").piece(text)
    }

    /// An empty stream of a content type with status 200, to which pieces are added.
    #[must_use]
    pub fn stream(content_type: &str) -> Self {
        Self::status(200, content_type)
    }

    /// Server-sent events, each the JSON text of one document, without `[DONE]` at the end.
    #[must_use]
    pub fn events(documents: &[Value]) -> Self {
        documents.iter().fold(Self::stream("text/event-stream"), Self::event)
    }

    /// Lines of JSON, one for each document.
    #[must_use]
    pub fn lines(documents: &[Value]) -> Self {
        let stream = Self::stream("application/x-ndjson");
        documents.iter().fold(stream, |script, document| script.piece(format!("{document}\n")))
    }

    /// These bytes, whatever they are, in place of status line and headers; the connection closes after them.
    #[must_use]
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { ending: Ending::Cut, ..Self::new(Head::Raw(bytes.into())) }
    }

    /// Not even a status; the connection stays open.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(Head::Hang)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Head::Status { headers, .. } = &mut self.head {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Adds a chunk to the body.
    #[must_use]
    pub fn piece(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Piece(bytes.into()));
        self
    }

    /// Adds a server-sent event with the JSON text of a document.
    #[must_use]
    pub fn event(self, document: &Value) -> Self {
        self.piece(format!("data: {document}\n\n"))
    }

    /// Adds the event that ends streams of `OpenAI`'s dialect.
    #[must_use]
    pub fn done(self) -> Self {
        self.piece("data: [DONE]\n\n")
    }

    /// Sends nothing for so long.
    #[must_use]
    pub fn pause(mut self, time: Duration) -> Self {
        self.steps.push(Step::Pause(time));
        self
    }

    /// Sends nothing until the token is cancelled.
    #[must_use]
    pub fn wait_for(mut self, token: &CancellationToken) -> Self {
        self.steps.push(Step::Await(token.clone()));
        self
    }

    /// Cuts all pieces so far into chunks of so many bytes, through the middle of characters, each in a packet of its own where the system
    /// lets it.
    #[must_use]
    pub fn cut_into(mut self, bytes: usize) -> Self {
        let cut = |step: Step| match step {
            Step::Piece(piece) => piece.chunks(bytes).map(|piece| Step::Piece(piece.to_vec())).collect(),
            other => vec![other],
        };
        self.steps = self.steps.into_iter().flat_map(cut).collect();
        self
    }

    /// Ends by sending nothing more, with the connection open.
    #[must_use]
    pub fn then_hang(mut self) -> Self {
        self.ending = Ending::Hang;
        self
    }

    /// Ends by closing the connection in the middle of the body.
    #[must_use]
    pub fn then_cut(mut self) -> Self {
        self.ending = Ending::Cut;
        self
    }

    /// Ends by resetting the connection.
    #[must_use]
    pub fn then_reset(mut self) -> Self {
        self.ending = Ending::Reset;
        self
    }
}
