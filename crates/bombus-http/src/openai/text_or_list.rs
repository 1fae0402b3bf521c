use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::whole::{self, Whole};

/// Most elements of a list, tokens included; far more than any model reads.
const ELEMENTS_MAX: usize = 1 << 20;

/// A text, or a list of something: the form in which this dialect takes most of its inputs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TextOrList<T> {
    Text(String),
    List(Vec<T>),
}

/// An element of a list of prompts: a text, a token, or a list of tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PromptItem {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

// An untagged enum would do, but it keeps a copy of everything before it decides, and loses the place of an error inside of the list.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOrList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrListVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrListVisitor<T> {
            type Value = TextOrList<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOrList::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(TextOrList::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                elements(list).map(TextOrList::List)
            }
        }

        deserializer.deserialize_any(TextOrListVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for PromptItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;

        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = PromptItem;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token id, or a list of token ids")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(PromptItem::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(PromptItem::Text(text))
            }

            fn visit_f64<E: Error>(self, token: f64) -> Result<Self::Value, E> {
                let id = whole::of_float(token).and_then(|id| u32::try_from(id).ok());
                id.map(PromptItem::Token).ok_or_else(|| E::custom(format!("{token} is not a token id")))
            }

            fn visit_u64<E: Error>(self, token: u64) -> Result<Self::Value, E> {
                u32::try_from(token).map(PromptItem::Token).map_err(|_| E::custom(format!("{token} is not a token id")))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                let tokens = elements::<Whole<u32>, _>(list)?;
                Ok(PromptItem::Tokens(tokens.into_iter().map(|token| token.0).collect()))
            }
        }

        deserializer.deserialize_any(ItemVisitor)
    }
}

/// Reads a list, and gives up where it becomes longer than anybody needs, before it takes much more memory than the text it is read of.
fn elements<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut list: A) -> Result<Vec<T>, A::Error> {
    let mut elements = Vec::new();
    while let Some(element) = list.next_element()? {
        if elements.len() == ELEMENTS_MAX {
            return Err(A::Error::custom(format!("a list may have up to {ELEMENTS_MAX} elements")));
        }
        elements.push(element);
    }
    Ok(elements)
}
