//! Answers that break off and go on elsewhere.

use bombus_core::chat::{Resume, Tool, ToolChoice};
use tokio::time::{Instant, advance};

use super::scribe::{End, Scribe, Seen, read};
use super::*;

/// Has characters of one to four bytes, and what is nearly the stop text twice before it comes.
const TEXT: &str = "Grüße, 世界 🐝! STO und STOP hie, dann STOP hier und nicht weiter";
const STOP: &str = "STOP hier";

fn over(scribes: &[Arc<Scribe>]) -> Backends {
    configured(scribes, RouteConfig::default())
}

fn configured(scribes: &[Arc<Scribe>], config: RouteConfig) -> Backends {
    let names = ["a", "b", "c", "d"];
    let named = scribes.iter().zip(names).map(|(scribe, name)| named(name, scribe.clone()));
    Backends::configured(named.collect(), config)
}

fn scribe(ends: impl IntoIterator<Item = End>) -> Arc<Scribe> {
    Arc::new(Scribe::new("one two three", ends))
}

async fn begin(backends: &Backends, request: ChatRequest) -> ChatStream {
    backends.route("m", &text()).await.unwrap().chat(request).await.unwrap().value
}

async fn seen(backends: &Backends) -> Seen {
    read(begin(backends, ask("m")).await).await
}

#[tokio::test]
async fn wherever_it_breaks_off_no_character_is_lost_or_doubled() {
    for stop in [vec![], vec![STOP.to_owned()], vec!["nirgends".to_owned(), "ße, 世界 ".to_owned()]] {
        let request = ChatRequest { stop, ..ask("m") };
        let whole = Arc::new(Scribe::new(TEXT, []));
        let undisturbed = read(begin(&over(&[whole]), request.clone()).await).await;
        let others = [
            Scribe::new(TEXT, []),
            Scribe { sha256: Some("bb"), ..Scribe::new(TEXT, []) },
            Scribe { sha256: None, traces: false, ..Scribe::new(TEXT, []) },
        ];
        for other in others.map(Arc::new) {
            for traces in [true, false] {
                for cut in 1..TEXT.len() {
                    let first = Arc::new(Scribe { traces, ..Scribe::new(TEXT, [End::BreakOff(cut)]) });
                    let answer = read(begin(&over(&[first, other.clone()]), request.clone()).await).await;
                    let text = (answer.text.as_str(), answer.error.as_ref());
                    assert_eq!(text, (undisturbed.text.as_str(), None), "cut at {cut}, traces: {traces}");
                    assert!(answer.continued.len() <= 1, "cut at {cut}");
                    // Without traces only pieces can be counted; what is at the end counts in any case.
                    assert_eq!(answer.completion_tokens, undisturbed.completion_tokens, "cut at {cut}");
                }
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_again_and_again_is_whole_in_the_end() {
    for cuts in [[1, 1], [3, 4], [7, 2], [30, 20]] {
        let scribes: Vec<_> = ["aa", "bb", "aa"]
            .into_iter()
            .zip([vec![End::BreakOff(cuts[0])], vec![End::BreakOff(cuts[1])], vec![]])
            .map(|(sha256, ends)| Arc::new(Scribe { sha256: Some(sha256), ..Scribe::new(TEXT, ends) }))
            .collect();
        // The first one that goes on has the same weights, so the one with others comes after it.
        let backends = over(&[scribes[0].clone(), scribes[1].clone()]);
        let answer = seen(&backends).await;
        assert_eq!((answer.text.as_str(), answer.error), (TEXT, None), "{cuts:?}");
        assert_eq!(answer.completion_tokens, Some(u32::try_from(TEXT.len()).unwrap()));
        assert_eq!(backends.states().iter().map(|state| state.running).sum::<u32>(), 0);
    }
}

#[tokio::test]
async fn who_goes_on_is_told_at_the_seam_and_before_nothing_else() {
    let backends = over(&[scribe([End::BreakOff(5)]), scribe([])]);
    let events: Vec<_> = begin(&backends, ask("m")).await.collect().await;
    let seam = events.iter().position(|event| matches!(event, Ok(ChatEvent::Continued { .. }))).unwrap();
    let Ok(ChatEvent::Continued { by, reason }) = &events[seam] else { unreachable!() };
    assert_eq!((by.node.as_ref(), by.backend.as_str(), by.model.as_str()), (None, "b", "m:latest"));
    assert_eq!(reason, "the answer broke off: broken");
    let text = |events: &[Result<ChatEvent, BackendError>]| {
        let mut seen = Seen::default();
        events.iter().cloned().for_each(|event| seen.take(event));
        seen.text
    };
    assert_eq!((text(&events[..seam]), text(&events[seam..])), ("one t".to_owned(), "wo three".to_owned()));
}

#[tokio::test]
async fn same_weights_go_on_before_others_and_from_the_tokens() {
    let other = Arc::new(Scribe { sha256: Some("bb"), ..Scribe::new("one two three", []) });
    let same = scribe([]);
    let backends = over(&[scribe([End::BreakOff(5)]), other.clone(), same.clone()]);
    assert_eq!(seen(&backends).await.takers(), ["c"]);
    assert!(other.asked().is_empty());
    let resume = same.asked()[0].resume.clone().unwrap();
    let expected = Resume {
        sha256: Some("aa".into()),
        tokens: vec![0, 1, 2, 3, 4],
        text: "one t".into(),
        completion_tokens: 5,
        ..Resume::default()
    };
    assert_eq!(resume, expected);
}

#[tokio::test]
async fn tokens_of_other_weights_are_taken_over_from_the_run_that_goes_on() {
    let scribes = [("aa", vec![End::BreakOff(5)]), ("bb", vec![End::BreakOff(3)]), ("bb", vec![])]
        .map(|(sha256, ends)| Arc::new(Scribe { sha256: Some(sha256), ..Scribe::new("one two three", ends) }));
    let answer = seen(&over(&scribes)).await;
    assert_eq!((answer.text.as_str(), answer.takers()), ("one two three", vec!["b", "c"]));
    let resume = scribes[2].asked()[0].resume.clone().unwrap();
    assert_eq!((resume.sha256.as_deref(), resume.tokens.len()), (Some("bb"), 8));
    assert_eq!((resume.text.as_str(), resume.completion_tokens), ("one two ", 8));
}

#[tokio::test]
async fn where_nobody_can_go_on_the_error_ends_what_was_handed_on() {
    let unable = Arc::new(Scribe { continues: false, ..Scribe::new("one two three", []) });
    let first = Arc::new(Scribe { continues: false, ..Scribe::new("one two three", [End::BreakOff(5)]) });
    let answer = seen(&over(&[first, unable.clone()])).await;
    let broken = BackendError::Interrupted { reason: "broken".into() };
    assert_eq!((answer.text.as_str(), answer.error), ("one t", Some(broken)));
    assert!(unable.asked().is_empty());
}

#[tokio::test]
async fn the_error_that_broke_the_answer_off_is_told_where_those_that_are_asked_fail() {
    struct Refusing;
    #[async_trait]
    impl Backend for Refusing {
        async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
            Ok(vec![ModelInfo { continues: true, ..text_model("m") }])
        }
        async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
            assert!(request.resume.is_some(), "it is the second choice");
            Err(BackendError::Unsupported { param: "resume", message: "not this one".into() })
        }
        async fn embed(&self, _: EmbedRequest) -> Result<EmbedResponse, BackendError> {
            Err(unavailable())
        }
        async fn health(&self) -> Health {
            Health::Ready
        }
    }
    let first = Arc::new(Scribe { continues: false, ..Scribe::new("one two three", [End::BreakOff(5)]) });
    let last = scribe([]);
    let backends = |last: Option<Arc<Scribe>>| {
        let last = last.map(|last| named("c", last));
        Backends::new([named("a", first.clone()), named("b", Arc::new(Refusing))].into_iter().chain(last).collect())
    };
    let answer = seen(&backends(None)).await;
    assert_eq!(
        (answer.text.as_str(), answer.error.unwrap().to_string().as_str()),
        ("one t", "the answer broke off: broken")
    );
    first.ends.lock().unwrap().push_back(End::BreakOff(5));
    let answer = seen(&backends(Some(last))).await;
    assert_eq!((answer.text.as_str(), answer.error), ("one two three", None), "the next one is asked");
}

#[tokio::test(start_paused = true)]
async fn an_engine_of_this_node_that_died_goes_on_itself_but_not_without_end() {
    let alone = scribe([End::BreakOff(5)]);
    let answer = seen(&over(std::slice::from_ref(&alone))).await;
    assert_eq!((answer.text.as_str(), answer.takers(), answer.error.clone()), ("one two three", vec!["a"], None));

    let config = RouteConfig { continuations_max: 2, ..RouteConfig::default() };
    let dying = scribe([End::BreakOff(1); 9]);
    let answer = seen(&configured(std::slice::from_ref(&dying), config)).await;
    assert_eq!((answer.text.as_str(), answer.takers().len(), dying.asked().len()), ("one", 2, 3));
    assert!(answer.error.is_some());
}

#[tokio::test]
async fn what_cannot_be_taken_back_ends_with_its_error() {
    let tool = Tool { name: "f".into(), description: None, parameters: serde_json::Value::Null, strict: None };
    let with_tools = ChatRequest { tools: vec![tool], ..ask("m") };
    let without = ChatRequest { tool_choice: ToolChoice::None, ..with_tools.clone() };
    for (request, whole) in [(with_tools, false), (without, true)] {
        let backends = over(&[scribe([End::BreakOff(5)]), scribe([])]);
        assert_eq!(read(begin(&backends, request).await).await.error.is_none(), whole);
    }
    let backends = over(&[scribe([End::BreakOff(5)]), scribe([])]);
    let route = backends.route("m", &text()).await.unwrap().without_continuation();
    let answer = read(route.chat(ask("m")).await.unwrap().value).await;
    assert_eq!((answer.text.as_str(), answer.error.is_some()), ("one t", true));
    let config = RouteConfig { continuations_max: 0, ..RouteConfig::default() };
    let backends = configured(&[scribe([End::BreakOff(5)]), scribe([])], config);
    assert!(seen(&backends).await.error.is_some());
}

#[tokio::test]
async fn tokens_in_a_request_go_to_the_same_weights_alone() {
    let other = Arc::new(Scribe { sha256: Some("bb"), ..Scribe::new("one two three", []) });
    let request = ChatRequest::new("m", Prompt::Tokens(vec![1, 2]));
    let first = || scribe([End::BreakOff(5)]);
    // The first one could go on itself, so it is told apart by who took over.
    let answer = read(begin(&over(&[first(), other.clone()]), request.clone()).await).await;
    assert_eq!((answer.takers(), answer.text.as_str()), (vec!["a"], "one two three"));
    let answer = read(begin(&over(&[first(), other.clone(), scribe([])]), request).await).await;
    assert_eq!((answer.takers(), other.asked().len()), (vec!["c"], 0));
}

#[tokio::test]
async fn traces_are_handed_on_to_those_alone_who_asked_for_them() {
    for traced in [false, true] {
        let scribe = scribe([]);
        let backends = over(std::slice::from_ref(&scribe));
        let answer = read(begin(&backends, ChatRequest { traced, ..ask("m") }).await).await;
        assert_eq!(answer.traced, traced);
        assert!(scribe.asked()[0].traced, "it is traced in any case");
    }
    let unable = Arc::new(Scribe { continues: false, ..Scribe::new("one", []) });
    seen(&over(std::slice::from_ref(&unable))).await;
    assert!(!unable.asked()[0].traced, "where nobody can go on nothing has to be known");
}

#[tokio::test]
async fn an_answer_that_another_node_began_goes_on_with_all_of_it() {
    let beginning = Resume { text: "one".into(), completion_tokens: 3, ..Resume::default() };
    let (first, second) = (scribe([End::BreakOff(2)]), scribe([]));
    let request = ChatRequest { resume: Some(beginning), ..ask("m") };
    let answer = read(begin(&over(&[first, second.clone()]), request).await).await;
    assert_eq!((answer.text.as_str(), answer.takers()), (" two three", vec!["b"]));
    let resume = second.asked()[0].resume.clone().unwrap();
    assert_eq!((resume.text.as_str(), resume.completion_tokens), ("one t", 5));
    assert_eq!(resume.tokens, [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_cut_prompt_is_told_once() {
    let preface = vec![ChatEvent::Truncated { messages: 1, prompt_tokens: 9 }];
    let scribes = [vec![End::BreakOff(5)], vec![]]
        .map(|ends| Arc::new(Scribe { preface: preface.clone(), ..Scribe::new("one two three", ends) }));
    let answer = seen(&over(&scribes)).await;
    assert_eq!((answer.truncated, answer.takers(), answer.text.as_str()), (1, vec!["b"], "one two three"));
}

#[tokio::test]
async fn speed_is_measured_of_what_a_run_has_written_itself() {
    let backends = over(&[scribe([End::BreakOff(4)]), scribe([])]);
    seen(&backends).await;
    // The double says 10 ms for each of the 13 tokens, of which the second backend has written nine.
    let speed = state(&backends, "b").tokens_per_second.unwrap();
    assert!((speed - 9_000.0 / 130.0).abs() < 1.0, "{speed}");
}

#[tokio::test]
async fn a_few_tokens_say_nothing_of_a_backends_speed() {
    let backends = over(&[scribe([End::BreakOff(12)]), scribe([])]);
    seen(&backends).await;
    assert_eq!(state(&backends, "b").tokens_per_second, None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stands_still_goes_on_elsewhere_and_its_backend_is_blamed() {
    let begun = Instant::now();
    let stalled = scribe([End::Stall(5)]);
    let backends = over(&[stalled.clone(), scribe([])]);
    let answer = seen(&backends).await;
    assert_eq!((answer.text.as_str(), answer.takers()), ("one two three", vec!["b"]));
    assert_eq!(begun.elapsed().as_secs(), 3);
    assert_eq!(stalled.open(), 0, "the run that stood still is ended");
    assert_eq!(state(&backends, "a").error.as_deref(), Some("no answer within 3 s"));
    for _ in 0..2 {
        stalled.ends.lock().unwrap().push_back(End::Stall(5));
        seen(&backends).await;
    }
    assert_eq!(state(&backends, "a").breaker, "open");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_waits_for_others_goes_on_elsewhere_and_nobody_is_blamed() {
    let waiting = scribe([End::Wait(5)]);
    let backends = over(&[waiting.clone(), scribe([])]);
    for _ in 0..3 {
        let answer = seen(&backends).await;
        assert_eq!((answer.text.as_str(), answer.takers()), ("one two three", vec!["b"]));
        waiting.ends.lock().unwrap().push_back(End::Wait(5));
    }
    assert_eq!(waiting.open(), 0, "the runs that waited are ended");
    let state = state(&backends, "a");
    assert_eq!((state.breaker, state.error), ("closed", None));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_else_can_go_on_an_answer_waits_for_others_and_is_whole() {
    let answer = seen(&over(&[scribe([End::Wait(5)])])).await;
    assert_eq!((answer.text.as_str(), answer.takers().len(), answer.error), ("one two three", 0, None));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_else_can_go_on_a_standstill_is_waited_out() {
    let alone = scribe([End::Stall(5)]);
    let backends = over(std::slice::from_ref(&alone));
    let mut stream = begin(&backends, ask("m")).await;
    let read = async { while stream.next().await.is_some() {} };
    assert!(timeout(Duration::from_secs(600), read).await.is_err());
    assert_eq!((alone.asked().len(), alone.open()), (1, 1));
    assert_eq!(state(&backends, "a").error, None);
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_does_not_stand_still() {
    // A token comes every 20 s, so 100 s are no standstill; 161 s are one.
    for gap in [20, 1] {
        let slow = Arc::new(Scribe { gap: Duration::from_secs(gap), ..Scribe::new("one two three", [End::Stall(6)]) });
        let backends = over(&[slow, scribe([])]);
        let begun = Instant::now();
        let answer = seen(&backends).await;
        let limit = if gap == 20 { 160 } else { 8 };
        assert_eq!((answer.takers(), answer.text.as_str()), (vec!["b"], "one two three"));
        let stood_still = begun.elapsed().as_secs() - 6 * gap;
        assert!(stood_still.abs_diff(limit) <= gap * 8 / 5, "{stood_still} s for a gap of {gap} s");
    }
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_makes_no_answer_stand_still() {
    let first = Arc::new(Scribe { gap: Duration::from_millis(1), ..Scribe::new("one two three", []) });
    let backends = over(&[first, scribe([])]);
    let mut stream = begin(&backends, ask("m")).await;
    let mut seen = Seen::default();
    loop {
        // It asks for a piece, goes away before that is there, and comes back much later.
        let piece = stream.next().now_or_never();
        advance(Duration::from_secs(60)).await;
        match piece {
            Some(Some(item)) => seen.take(item),
            Some(None) => break,
            None => {}
        }
    }
    assert_eq!((seen.text.as_str(), seen.takers().len(), seen.error), ("one two three", 0, None));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_ends_whatever_is_under_way() {
    // While the second one writes, and while it has not begun yet.
    for ends in [End::Stall(3), End::Stall(0)] {
        let (first, second) = (scribe([End::BreakOff(5)]), scribe([ends]));
        let backends = over(&[first.clone(), second.clone()]);
        let mut stream = begin(&backends, ask("m")).await;
        let read = async { while stream.next().await.is_some() {} };
        assert!(timeout(Duration::from_secs(1), read).await.is_err());
        assert_eq!((first.open(), second.open()), (0, 1));
        drop(stream);
        assert_eq!(second.open(), 0);
        assert_eq!(backends.states().iter().map(|state| state.running).sum::<u32>(), 0);
        assert_eq!(state(&backends, "b").error, None, "whose client goes away is not to blame");
    }
}
