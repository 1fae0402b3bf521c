use super::*;

#[tokio::test]
async fn a_peer_that_never_answers_ends_in_time_and_holds_up_nobody() {
    let config = BitswapConfig { answer_ms: 500, asked_per_peer: 10, ..BitswapConfig::default() };
    let mut one = Exchanging::with(1, config, Blocks::default()).await;
    let (silent, honest) = (ByHand::start(2).await, Exchanging::start(3).await);
    let there = honest.store.put(block(1, 10));
    one.dial(&silent.node).await;
    one.dial(&honest.node).await;
    let cids: Vec<Cid> = (0..50).map(|number| cid_of(&block(number, 9))).collect();
    one.bitswap.want(&silent.id(), &cids);
    one.bitswap.want(&honest.id(), &[there]);
    let mut absent = 0;
    let mut came = false;
    while absent < 50 || !came {
        match one.event().await {
            BitswapEvent::Absent { peer, .. } => {
                assert_eq!(peer, silent.id());
                absent += 1;
            }
            BitswapEvent::Block { peer, cid, .. } => {
                assert_eq!((peer, cid), (honest.id(), there));
                came = true;
            }
        }
    }
    assert_eq!(absent, 50, "those that still waited are not asked for either");
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_given_up() {
    let config = BitswapConfig { message_ms: 500, ..patient() };
    let one = Exchanging::with(1, config, Blocks::default()).await;
    let other = ByHand::start(2).await;
    // More than the window of a stream: it is never read there.
    let cids: Vec<Cid> = (0..8).map(|number| one.store.put(block(number, 1 << 20))).collect();
    let mut stream = other.stream_to(&one).await;
    say(&mut stream, &wants(cids.iter().map(Entry::want).collect())).await.unwrap();
    stream.shutdown().await.unwrap();
    one.report_with(|report| report.peers == 1).await;
    one.report_with(|report| report.peers == 0).await;
    assert_eq!(one.bitswap.report().blocks_sent, 0);
}

#[tokio::test]
async fn a_block_that_is_not_for_a_peer_is_absent_for_it() {
    let store = Blocks { strangers: BTreeSet::from([id(2)]), ..Blocks::default() };
    let one = Exchanging::with(1, patient(), store).await;
    let (mut stranger, mut friend) = (Exchanging::start(2).await, Exchanging::start(3).await);
    let cid = one.store.put(b"for friends".to_vec());
    for node in [&stranger, &friend] {
        node.dial(&one.node).await;
        node.bitswap.want(&one.id(), &[cid]);
    }
    assert_eq!(stranger.event().await, BitswapEvent::Absent { peer: one.id(), cid });
    assert_eq!(friend.blocks(1).await[&cid], b"for friends");
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_its_stream_and_nothing_else() {
    let one = Exchanging::start(1).await;
    let mut other = ByHand::start(2).await;
    let cid = one.store.put(block(1, 10));
    let mut stream = other.stream_to(&one).await;
    let mut oversize = Vec::new();
    prost::encode_length_delimiter((4 << 20) + 1, &mut oversize).unwrap();
    stream.write_all(&oversize).await.unwrap();
    stream.flush().await.unwrap();
    one.report_with(|report| report.messages_refused == 1).await;
    let mut stream = other.stream_to(&one).await;
    say(&mut stream, &wants(vec![Entry::want(&cid)])).await.unwrap();
    assert_eq!(other.hear().await.blocks.len(), 1);
}

#[tokio::test]
async fn what_is_no_message_ends_its_stream_and_nothing_else() {
    let one = Exchanging::start(1).await;
    let mut other = ByHand::start(2).await;
    let cid = one.store.put(block(1, 10));
    for (count, garbage) in [(1, &[0x02, 0x0a, 0xff][..]), (2, &[0xff; 16])] {
        let mut stream = other.stream_to(&one).await;
        stream.write_all(garbage).await.unwrap();
        stream.flush().await.unwrap();
        one.report_with(|report| report.messages_refused == count).await;
    }
    let mut stream = other.stream_to(&one).await;
    say(&mut stream, &wants(vec![Entry::want(&cid)])).await.unwrap();
    assert_eq!(other.hear().await.blocks.len(), 1);
}

#[tokio::test]
async fn a_flood_of_wants_is_bounded_and_others_are_served() {
    let config = BitswapConfig { wants_per_peer: 1_000, ..patient() };
    let one = Exchanging::with(1, config, Blocks::default()).await;
    let cid = one.store.put(block(1, 10));
    let (flooder, mut honest) = (ByHand::start(2).await, Exchanging::start(3).await);
    let mut stream = flooder.stream_to(&one).await;
    let silently = |cid: &Cid| Entry { send_dont_have: false, ..Entry::want(cid) };
    for turn in 0..10 {
        let numbers = turn * 10_000..(turn + 1) * 10_000;
        let entries = numbers.map(|number| silently(&cid_of(&block(number, 9)))).collect();
        say(&mut stream, &wants(entries)).await.unwrap();
    }
    one.report_with(|report| report.wants_refused >= 90_000).await;
    honest.dial(&one.node).await;
    honest.bitswap.want(&one.id(), &[cid]);
    assert_eq!(honest.blocks(1).await.len(), 1);
}

#[tokio::test]
async fn blocks_that_nobody_asked_for_are_dropped() {
    let mut one = Exchanging::start(1).await;
    let (mut asked, other) = (ByHand::start(2).await, ByHand::start(3).await);
    one.dial(&asked.node).await;
    let wanted = block(1, 10);
    let cid = cid_of(&wanted);
    one.bitswap.want(&asked.id(), &[cid]);
    assert_eq!(asked.hear().await.wants.len(), 1);
    // From one that was asked for nothing; then something else from the one that was asked.
    let mut stream = other.stream_to(&one).await;
    say(&mut stream, &sending(vec![Block::new(&cid, wanted.clone())])).await.unwrap();
    one.report_with(|report| report.blocks_unwanted == 1).await;
    let mut stream = asked.stream_to(&one).await;
    say(&mut stream, &sending(vec![Block::new(&cid_of(b"other"), b"other".to_vec())])).await.unwrap();
    one.report_with(|report| report.blocks_unwanted == 2).await;
    // Twice what was asked for.
    say(&mut stream, &sending(vec![Block::new(&cid, wanted.clone()); 2])).await.unwrap();
    assert_eq!(one.event().await, BitswapEvent::Block { peer: asked.id(), cid, data: wanted });
    one.report_with(|report| report.blocks_unwanted == 3).await;
    assert_eq!(one.bitswap.report().blocks_received, 1);
}

#[tokio::test]
async fn a_block_with_other_bytes_is_not_taken_for_the_one_that_was_wanted() {
    let mut one = Exchanging::start(1).await;
    let mut liar = ByHand::start(2).await;
    one.dial(&liar.node).await;
    let truth = block(1, 1_000);
    let cid = cid_of(&truth);
    one.bitswap.want(&liar.id(), &[cid]);
    assert_eq!(liar.hear().await.wants.len(), 1);
    let mut changed = truth.clone();
    changed[999] ^= 1;
    let lies = [changed, truth[..999].to_vec(), Vec::new(), [truth.clone(), vec![0]].concat()];
    let mut stream = liar.stream_to(&one).await;
    say(&mut stream, &sending(lies.iter().map(|data| Block::new(&cid, data.clone())).collect())).await.unwrap();
    // The right bytes under another codec are another block.
    let other_codec = Cid::new_v1(0x55, *cid.hash());
    say(&mut stream, &sending(vec![Block::new(&other_codec, truth.clone())])).await.unwrap();
    one.report_with(|report| report.blocks_unwanted == 5).await;
    say(&mut stream, &sending(vec![Block::new(&cid, truth.clone())])).await.unwrap();
    assert_eq!(one.event().await, BitswapEvent::Block { peer: liar.id(), cid, data: truth });
}

#[tokio::test]
async fn a_block_that_is_too_large_is_neither_taken_nor_sent() {
    let config = BitswapConfig { block_bytes_max: 10_000, ..patient() };
    let mut one = Exchanging::with(1, config, Blocks::default()).await;
    let mut other = ByHand::start(2).await;
    let large = one.store.put(block(1, 10_001));
    let mut stream = other.stream_to(&one).await;
    say(&mut stream, &wants(vec![Entry::want(&large)])).await.unwrap();
    assert_eq!(other.hear().await.presences, [(large, false)]);
    let fits = block(2, 10_000);
    let too_large = block(3, 10_001);
    one.bitswap.want(&other.id(), &[cid_of(&fits), cid_of(&too_large)]);
    let blocks = [too_large, fits.clone()].map(|data| Block::new(&cid_of(&data), data)).to_vec();
    while other.hear().await.wants.is_empty() {}
    say(&mut stream, &sending(blocks)).await.unwrap();
    assert_eq!(one.event().await, BitswapEvent::Block { peer: other.id(), cid: cid_of(&fits), data: fits });
    assert_eq!(one.bitswap.report().blocks_unwanted, 1);
}

#[tokio::test]
async fn a_flood_of_streams_is_bounded_and_others_are_served() {
    let config = BitswapConfig { streams_per_peer: 4, ..patient() };
    let one = Exchanging::with(1, config, Blocks::default()).await;
    let cid = one.store.put(block(1, 10));
    let (flooder, mut honest) = (ByHand::start(2).await, Exchanging::start(3).await);
    flooder.node.net.dial(&one.node.addr()).await.unwrap();
    let mut streams = Vec::new();
    for count in 1..=20_u64 {
        let mut stream = flooder.node.net.open_stream(&one.id(), PROTOCOL).await.unwrap();
        // A message that never ends.
        let written = async {
            stream.write_all(&[0xff, 0x7f, 0x0a]).await?;
            stream.flush().await
        };
        // The other end may have reset it already.
        let _ = written.await;
        streams.push(stream);
        one.report_with(|report| report.streams_refused >= count.saturating_sub(4)).await;
    }
    honest.dial(&one.node).await;
    honest.bitswap.want(&one.id(), &[cid]);
    assert_eq!(honest.blocks(1).await.len(), 1);
}

#[tokio::test]
async fn large_messages_that_never_end_hold_up_only_the_peer_that_sends_them() {
    let config = BitswapConfig { message_ms: FOR_EVER_MS, ..patient() };
    let mut one = Exchanging::with(1, config, Blocks::default()).await;
    let (flooder, honest) = (ByHand::start(2).await, Exchanging::start(3).await);
    flooder.node.net.dial(&one.node.addr()).await.unwrap();
    let mut beginning = Vec::new();
    prost::encode_length_delimiter(4 << 20, &mut beginning).unwrap();
    let mut streams = Vec::new();
    for _ in 0..16 {
        let mut stream = flooder.node.net.open_stream(&one.id(), PROTOCOL).await.unwrap();
        stream.write_all(&beginning).await.unwrap();
        stream.flush().await.unwrap();
        streams.push(stream);
    }
    // One more is refused, so the others are being read.
    let mut more = flooder.node.net.open_stream(&one.id(), PROTOCOL).await.unwrap();
    let _ = more.write_all(&beginning).await;
    let _ = more.flush().await;
    one.report_with(|report| report.streams_refused == 1).await;
    let there = honest.store.put(block(1, 1 << 20));
    one.dial(&honest.node).await;
    one.bitswap.want(&honest.id(), &[there]);
    assert_eq!(one.blocks(1).await.len(), 1);
}

#[tokio::test]
async fn a_store_that_fails_or_panics_harms_only_the_peer_that_asked() {
    struct Broken(Cid);
    impl BlockStore for Broken {
        fn block(&self, peer: &NodeId, cid: &Cid) -> io::Result<Option<Vec<u8>>> {
            assert_ne!(*peer, id(2), "as the test wants");
            if *cid == self.0 { Ok(Some(block(1, 10))) } else { Err(io::Error::other("the disk is gone")) }
        }
    }
    let one = Running::start(1, closed(7)).await;
    let cid = cid_of(&block(1, 10));
    let (_handle, _events, service) = bitswap(one.net.clone(), Arc::new(Broken(cid)), patient()).unwrap();
    // It ends with the test.
    tokio::spawn(service.run(CancellationToken::new()));
    let quick = BitswapConfig { answer_ms: 500, ..BitswapConfig::default() };
    let mut unlucky = Exchanging::with(2, quick, Blocks::default()).await;
    let mut other = Exchanging::start(3).await;
    for node in [&unlucky, &other] {
        node.dial(&one).await;
        node.bitswap.want(one.net.node_id(), &[cid]);
    }
    assert_eq!(unlucky.absences(1).await, BTreeSet::from([cid]));
    assert_eq!(other.blocks(1).await[&cid], block(1, 10));
    other.bitswap.want(one.net.node_id(), &[cid_of(b"not readable")]);
    assert_eq!(other.absences(1).await.len(), 1);
}
