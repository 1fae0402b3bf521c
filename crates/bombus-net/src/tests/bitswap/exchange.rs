use super::*;

#[tokio::test]
async fn blocks_go_both_ways() {
    let (mut one, mut other) = (Exchanging::start(1).await, Exchanging::start(2).await);
    let here: Vec<Cid> = (0..3).map(|number| one.store.put(block(number, 100))).collect();
    let there: Vec<Cid> = (10..13).map(|number| other.store.put(block(number, 100_000))).collect();
    one.dial(&other.node).await;
    one.bitswap.want(&other.id(), &there);
    other.bitswap.want(&one.id(), &here);
    let (got, got_there) = (one.blocks(3).await, other.blocks(3).await);
    assert_eq!(got.keys().copied().collect::<BTreeSet<_>>(), there.iter().copied().collect());
    assert_eq!(got_there.keys().copied().collect::<BTreeSet<_>>(), here.iter().copied().collect());
    assert!(got.iter().chain(&got_there).all(|(cid, data)| cid_of(data) == *cid));
    let report = one.bitswap.report();
    assert_eq!((report.blocks_received, report.bytes_received), (3, 300_000));
    one.report_with(|report| (report.blocks_sent, report.bytes_sent) == (3, 300)).await;
}

#[tokio::test]
async fn thousands_of_wants_are_met_though_few_go_at_once() {
    let config = BitswapConfig { asked_per_peer: 100, message_bytes: 20_000, events: 8, ..patient() };
    let mut one = Exchanging::with(1, config, Blocks::default()).await;
    let other = Exchanging::with(2, config, Blocks::default()).await;
    let there: Vec<Cid> = (0..3_000).map(|number| other.store.put(block(number, 600))).collect();
    one.dial(&other.node).await;
    one.bitswap.want(&other.id(), &there);
    assert_eq!(one.blocks(3_000).await.len(), 3_000);
}

#[tokio::test]
async fn a_peer_that_is_not_connected_is_dialled() {
    let (mut one, other) = (Exchanging::start(1).await, Exchanging::start(2).await);
    let cid = other.store.put(block(1, 10));
    let mut events = one.node.net.events();
    one.dial(&other.node).await;
    connected(&mut events, &other.id()).await;
    one.node.net.disconnect(&other.id()).await;
    disconnected(&mut events, &other.id()).await;
    one.bitswap.want(&other.id(), &[cid]);
    // The end of the old connection may be told after this want; then it is made again.
    if let BitswapEvent::Absent { .. } = one.event().await {
        one.bitswap.want(&other.id(), &[cid]);
        assert_eq!(one.blocks(1).await.len(), 1);
    }
}

#[tokio::test]
async fn what_a_peer_has_not_got_is_told_at_once() {
    let (mut one, other) = (Exchanging::start(1).await, Exchanging::start(2).await);
    let (here, nowhere) = (other.store.put(block(1, 10)), cid_of(b"nowhere"));
    one.dial(&other.node).await;
    one.bitswap.want(&other.id(), &[nowhere]);
    assert_eq!(one.event().await, BitswapEvent::Absent { peer: other.id(), cid: nowhere });
    one.bitswap.want(&other.id(), &[nowhere, here]);
    let events = [one.event().await, one.event().await];
    assert!(events.contains(&BitswapEvent::Absent { peer: other.id(), cid: nowhere }), "it is told again: {events:?}");
    assert_eq!(one.bitswap.report().absent, 2);
}

#[tokio::test]
async fn a_peer_that_is_not_reached_has_nothing() {
    let mut one = Exchanging::start(1).await;
    let cids = [cid_of(b"a"), cid_of(b"b")];
    one.bitswap.want(&id(9), &cids);
    assert_eq!(one.absences(2).await, BTreeSet::from(cids));
    one.report_with(|report| report.peers == 0).await;
}

#[tokio::test]
async fn a_peer_that_goes_away_has_nothing() {
    let mut one = Exchanging::start(1).await;
    let mut other = ByHand::start(2).await;
    one.dial(&other.node).await;
    one.bitswap.want(&other.id(), &[cid_of(b"a")]);
    assert_eq!(other.hear().await.wants.len(), 1);
    other.node.stop().await;
    assert_eq!(one.absences(1).await.len(), 1);
}

#[tokio::test]
async fn a_name_that_cannot_be_checked_is_not_asked_for() {
    let (mut one, other) = (Exchanging::start(1).await, Exchanging::start(2).await);
    let identity = Cid::new_v1(0x55, Multihash::wrap(0, b"in the name").unwrap());
    one.bitswap.want(&other.id(), &[identity]);
    assert_eq!(one.event().await, BitswapEvent::Absent { peer: other.id(), cid: identity });
}

#[tokio::test]
async fn who_wanted_a_block_before_it_was_here_gets_it_then() {
    let one = Exchanging::start(1).await;
    let mut other = ByHand::start(2).await;
    let data = block(1, 100);
    let cid = cid_of(&data);
    let mut stream = other.stream_to(&one).await;
    say(&mut stream, &wants(vec![Entry::want(&cid)])).await.unwrap();
    assert_eq!(other.hear().await.presences, [(cid, false)]);
    one.store.put(data.clone());
    assert_eq!(other.hear().await.blocks, [Block::new(&cid, data)]);
}

#[tokio::test]
async fn who_only_asks_whether_a_block_is_here_is_told_and_gets_a_small_one() {
    let one = Exchanging::start(1).await;
    let mut other = ByHand::start(2).await;
    let (small, large) = (one.store.put(block(1, 100)), one.store.put(block(2, 10_000)));
    let mut stream = other.stream_to(&one).await;
    let entries = [small, large].iter().map(|cid| Entry { want_type: 1, ..Entry::want(cid) }).collect();
    say(&mut stream, &wants(entries)).await.unwrap();
    let heard = other.hear().await;
    assert_eq!(heard.presences, [(large, true)]);
    assert_eq!(heard.blocks, [Block::new(&small, block(1, 100))]);
}

#[tokio::test]
async fn wants_that_are_taken_back_have_no_events_and_the_peer_is_told() {
    let mut one = Exchanging::start(1).await;
    let mut other = ByHand::start(2).await;
    let (kept, dropped) = (block(1, 10), cid_of(b"dropped"));
    one.dial(&other.node).await;
    one.bitswap.want(&other.id(), &[dropped, cid_of(&kept)]);
    let (_, mut stream) = timeout(LIMIT, other.incoming.next()).await.unwrap().unwrap();
    assert_eq!(hear(&mut stream).await.unwrap().wants.len(), 2);
    one.bitswap.cancel(&other.id(), &[dropped]);
    let taken_back = hear(&mut stream).await.unwrap().wants;
    assert_eq!(taken_back.iter().map(|want| (want.cid, want.is_cancel)).collect::<Vec<_>>(), [(dropped, true)]);
    let mut answer = other.stream_to(&one).await;
    let message = Message {
        presences: vec![Presence::new(&dropped, false)],
        ..sending(vec![Block::new(&cid_of(&kept), kept.clone())])
    };
    say(&mut answer, &message).await.unwrap();
    assert_eq!(one.blocks(1).await.into_values().next(), Some(kept));
    assert_eq!(one.bitswap.report().absent, 0);
}

#[tokio::test]
async fn nothing_is_lost_when_events_are_taken_slowly() {
    let config = BitswapConfig { events: 1, message_bytes: 10_000, ..patient() };
    let mut one = Exchanging::with(1, config, Blocks::default()).await;
    let other = Exchanging::with(2, config, Blocks::default()).await;
    let there: Vec<Cid> = (0..200).map(|number| other.store.put(block(number, 5_000))).collect();
    one.dial(&other.node).await;
    one.bitswap.want(&other.id(), &there);
    // All is sent, as far as the stream takes it, before the first event is taken.
    other.report_with(|report| report.blocks_sent >= 20).await;
    assert_eq!(one.blocks(200).await.len(), 200);
}

#[tokio::test]
async fn a_stream_without_messages_is_closed_and_the_next_message_takes_a_new_one() {
    let config = BitswapConfig { idle_ms: 10, ..patient() };
    let one = Exchanging::with(1, config, Blocks::default()).await;
    let mut other = ByHand::start(2).await;
    one.dial(&other.node).await;
    for number in 0..3_u8 {
        one.bitswap.want(&other.id(), &[cid_of(&[number])]);
        let (_, mut stream) = timeout(LIMIT, other.incoming.next()).await.unwrap().unwrap();
        assert_eq!(hear(&mut stream).await.unwrap().wants[0].cid, cid_of(&[number]));
        assert_eq!(hear(&mut stream).await, None, "it ends in an orderly way");
    }
}

#[tokio::test]
async fn everything_ends_with_the_service() {
    let mut one = Exchanging::start(1).await;
    let other = ByHand::start(2).await;
    one.dial(&other.node).await;
    one.bitswap.want(&other.id(), &[cid_of(b"a")]);
    one.stop.cancel();
    timeout(LIMIT, one.task).await.expect("it stops in time").unwrap();
    let ended = timeout(LIMIT, async { while one.events.next().await.is_some() {} });
    ended.await.expect("the events end");
    one.bitswap.want(&other.id(), &[cid_of(b"b")]);
    assert_eq!(one.bitswap.report().peers, 0);
    bitswap(one.node.net.clone(), one.store, patient()).expect("the protocol is free again");
}
