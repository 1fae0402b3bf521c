use proptest::prelude::*;

use super::*;

fn by_size_of(text: &str, chars_max: usize) -> Vec<&str> {
    split(text, Chunking::Size, chars_max).unwrap()
}

fn by_paragraph_of(text: &str, chars_max: usize) -> Vec<&str> {
    split(text, Chunking::Paragraph, chars_max).unwrap()
}

#[test]
fn a_text_that_is_not_to_be_cut_or_fits_stays_whole() {
    let text = "One.\n\nTwo.";
    assert_eq!(split(text, Chunking::None, 1), Ok(vec![text]));
    assert_eq!(by_size_of(text, 10), [text]);
    assert_eq!(by_paragraph_of(text, 10), [text]);
    assert_eq!(by_size_of("", 10), [""]);
    assert_eq!(by_paragraph_of("", 10), [""]);
}

#[test]
fn cuts_are_between_words_as_late_as_possible() {
    assert_eq!(by_size_of("The quick brown fox jumps.", 10), ["The quick ", "brown fox ", "jumps."]);
    assert_eq!(by_size_of("Wait, what? (Yes.) No!", 12), ["Wait, what? ", "(Yes.) No!"]);
}

#[test]
fn a_word_that_is_too_long_is_cut_between_characters() {
    assert_eq!(by_size_of("incomprehensibility", 8), ["incompre", "hensibil", "ity"]);
    // Each is one character to the eye: a family of joined people, a flag, a letter with a mark of its own.
    assert_eq!(by_size_of("👩‍👩‍👧🇩🇪e\u{301}", 1), ["👩‍👩‍👧", "🇩🇪", "e\u{301}"]);
    // A mark may stand on a space.
    assert_eq!(by_size_of("ab  \u{bbe}", 2), ["ab ", " \u{bbe}"]);
}

#[test]
fn text_without_spaces_is_cut_between_its_words() {
    let text = "スイカはおいしいですタイトル";
    let parts = by_size_of(text, 5);
    assert_eq!(parts.concat(), text);
    assert_eq!(parts[0], "スイカはお");
    let rare = "a 我们都是中国人民的好朋友";
    assert!(by_size_of(rare, 8)[0].chars().count() > 4, "one space does not make the parts small");
}

#[test]
fn paragraphs_stay_together_as_many_as_fit() {
    let text = "One.\n\nTwo.\n\nThree is longer.\n\nFour.";
    assert_eq!(by_paragraph_of(text, 10), ["One.\n\nTwo.\n\n", "Three is ", "longer.\n\n", "Four."]);
    assert_eq!(by_paragraph_of(text, 16), ["One.\n\nTwo.\n\n", "Three is longer.\n\n", "Four."]);
    assert_eq!(by_paragraph_of("A\r\n\r\nB\n \n\nC", 1), ["A\r\n\r\n", "B\n \n\n", "C"]);
    assert_eq!(by_paragraph_of("line one\nline two", 8), ["line one\n", "line two"], "one paragraph, too long");
}

#[test]
fn what_cannot_be_cut_is_refused_with_the_reason() {
    assert_eq!(split("a b", Chunking::Size, 0), Err(ChunkError::Size));
    let many = "a ".repeat(CHUNKS_MAX + 1);
    assert_eq!(split(&many, Chunking::Size, 1), Err(ChunkError::Count));
    assert_eq!(split(&many, Chunking::Size, 3).map(|parts| parts.len()), Ok(CHUNKS_MAX / 2 + 1));
}

#[test]
fn the_names_of_both_worlds_are_understood() {
    for (name, chunking) in [
        ("none", Chunking::None),
        ("paragraph", Chunking::Paragraph),
        ("split-by-paragraph", Chunking::Paragraph),
        ("size", Chunking::Size),
        ("split-by-size", Chunking::Size),
    ] {
        assert_eq!(name.parse(), Ok(chunking));
        assert_eq!(serde_json::from_value::<Chunking>(name.into()).unwrap(), chunking);
    }
    assert_eq!("lines".parse::<Chunking>(), Err(ParseChunkingError));
}

#[test]
fn a_template_takes_the_text_in_its_place_or_behind_it() {
    assert_eq!(fill("Sum up: {text} Briefly.", "a"), "Sum up: a Briefly.");
    assert_eq!(fill("Sum up.", "{text}"), "Sum up.\n\n{text}");
}

fn text() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        4 => "[a-zA-Zäß]{1,12}",
        2 => " {1,3}",
        1 => prop::sample::select(vec!["\n", "\n\n", "\r\n\r\n", "\t", "\u{3000}"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec![".", ", ", "(", "?!", "’"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["👩‍👩‍👧", "🇩🇪🇫🇷", "e\u{301}", "한국어", "我们", "नमस्ते", "\u{600}1"]).prop_map(str::to_owned),
        1 => "\\PC{0,4}",
    ];
    prop::collection::vec(token, 0..60).prop_map(|tokens| tokens.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_parts_are_the_text_again_none_is_too_long_or_empty_and_no_character_is_cut(
        text in text(),
        chars_max in 1usize..40,
        chunking in prop::sample::select(vec![Chunking::Paragraph, Chunking::Size]),
    ) {
        let parts = split(&text, chunking, chars_max).unwrap();
        prop_assert_eq!(parts.concat(), text.clone());
        let whole: Vec<usize> = text.grapheme_indices(true).map(|(at, _)| at).collect();
        let mut at = 0;
        for part in &parts {
            prop_assert!(text.is_empty() || !part.is_empty());
            let content = part.trim_end();
            prop_assert!(chars(content) <= chars_max, "{part:?} of {chars_max}");
            prop_assert!(chars(part) <= 2 * chars_max || chunking == Chunking::Paragraph);
            prop_assert!(at == 0 || whole.binary_search(&at).is_ok(), "cut at {at} of {text:?}");
            at += part.len();
        }
    }
}
