use bombus_core::identity::NodeKey;
use proptest::prelude::*;

use super::super::OwnerKey;
use super::*;

fn owner() -> OwnerKey {
    OwnerKey::from_secret(&[1; 32])
}

fn node(seed: u8) -> NodeId {
    NodeKey::from_secret(&[seed; 32]).node_id()
}

fn ticket(addresses: &[String]) -> Ticket {
    Ticket::new(SwarmKey::from_bytes([7; 32]), owner().id(), Generation(3), addresses).unwrap()
}

fn usual() -> Ticket {
    let node = node(5);
    ticket(&[format!("/ip4/192.0.2.7/tcp/7891/p2p/{node}"), format!("/ip6/2001:db8::7/tcp/7891/p2p/{node}")])
}

fn error(line: &str) -> ParseLineError {
    line.parse::<Ticket>().unwrap_err()
}

#[test]
fn a_ticket_is_one_line_that_is_read_back() {
    let ticket = usual();
    let line = ticket.to_string();
    assert!(line.starts_with("bombus1") && line.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{line}");
    assert!(line.len() < 300, "{} characters", line.len());
    assert_eq!(line.parse::<Ticket>().unwrap(), ticket);
    assert_eq!(ticket.swarm_id(), SwarmId::of(&owner().id()));
    assert_eq!(ticket.addresses()[1], format!("/ip6/2001:db8::7/tcp/7891/p2p/{}", node(5)));
}

#[test]
fn space_around_it_and_capitals_do_no_harm() {
    assert_eq!(format!("\n  {}\r\n", usual().to_string().to_uppercase()).parse::<Ticket>().unwrap(), usual());
}

#[test]
fn debug_output_does_not_show_the_key() {
    let shown = format!("{:?}", usual());
    assert!(!shown.contains(&usual().to_string()) && !shown.contains(&hex::encode([7; 32])), "{shown}");
    assert!(!shown.contains("7, 7, 7"), "{shown}");
}

#[test]
fn a_ticket_never_gets_longer_than_a_line() {
    let long = |i: u8| format!("/dns4/{}.example/tcp/7891/p2p/{}", "x".repeat(100), node(i));
    let ticket = ticket(&(0..20).map(long).collect::<Vec<_>>());
    assert!(ticket.to_string().len() <= LINE_CHARACTERS_MAX);
    assert!(!ticket.addresses().is_empty() && ticket.addresses().len() < ADDRESSES_MAX);
    assert_eq!(ticket.to_string().parse::<Ticket>().unwrap(), ticket);
}

#[test]
fn sixteen_addresses_of_a_node_fit() {
    let address = |i: u8| format!("/ip6/2001:db8::{i}/tcp/7891/p2p/{}", node(5));
    let ticket = ticket(&(0..20).map(address).collect::<Vec<_>>());
    assert_eq!(ticket.addresses().len(), ADDRESSES_MAX);
}

#[test]
fn an_address_that_is_none_is_told() {
    let made = Ticket::new(SwarmKey::from_bytes([7; 32]), owner().id(), Generation(0), &["192.0.2.7:7891"]);
    assert!(matches!(made, Err(InviteError::Address { address, .. }) if address == "192.0.2.7:7891"));
}

#[test]
fn what_is_no_ticket_is_told_from_what_is() {
    for text in ["", "hello", "bombus", "bombusk2345", "/key/swarm/psk/1.0.0/", "bömbus1aaaa", "bombus0aaaa"] {
        assert!(matches!(error(text), ParseLineError::Foreign { .. }), "{text}");
    }
    let owner_key = owner().to_string();
    assert!(matches!(error(&owner_key), ParseLineError::OtherKind { found: "owner key", .. }));
    assert!(matches!(usual().to_string().parse::<OwnerKey>(), Err(ParseLineError::OtherKind { found: "ticket", .. })));
}

#[test]
fn a_later_version_is_told() {
    let newer = usual().to_string().replacen('1', "2", 1);
    assert!(matches!(error(&newer), ParseLineError::Newer { found: 2, known: 1, .. }));
    assert!(error(&newer).to_string().contains("update bombus"));
}

#[test]
fn a_ticket_that_is_cut_off_says_how_much_is_missing() {
    let line = usual().to_string();
    for kept in "bombus1".len()..line.len() {
        let ParseLineError::CutOff { missing, .. } = error(&line[..kept]) else { panic!("{kept} characters") };
        assert!(kept < "bombus1".len() + 10 || missing == line.len() - kept, "{missing} at {kept}");
    }
}

#[test]
fn a_character_that_no_ticket_has_is_shown_with_its_place() {
    let mut line = usual().to_string();
    line.replace_range(20..21, "0");
    assert_eq!(error(&line), ParseLineError::Character { wanted: "ticket", character: '0', place: 21 });
    line.replace_range(20..21, "ö");
    assert_eq!(error(&line), ParseLineError::Character { wanted: "ticket", character: 'ö', place: 21 });
}

#[test]
fn a_ticket_with_something_after_it_is_refused() {
    let line = format!("{}aaa", usual());
    assert_eq!(error(&line), ParseLineError::TooLong { wanted: "ticket", by: 3 });
}

#[test]
fn a_ticket_that_makes_no_sense_is_refused_in_words() {
    let content = |change: fn(&mut Content)| {
        let mut content = Content {
            key: [7; 32].into(),
            owner: (*owner().id().as_bytes()).into(),
            generation: 0,
            groups: vec![Group { node: None, addresses: vec![vec![4, 192, 0, 2, 7, 6, 0x1e, 0xd3].into()] }],
        };
        change(&mut content);
        one_line::encode(&TICKET, &minicbor::to_vec(content).unwrap()).parse::<Ticket>()
    };
    content(|_| {}).unwrap();
    let wrong: [fn(&mut Content); 5] = [
        |content| content.owner = std::array::from_fn(|i| u8::from(i == 0)).into(),
        |content| content.generation = u64::MAX,
        |content| content.groups[0].addresses = vec![vec![0xff; 8].into()],
        |content| content.groups[0].addresses = vec![vec![].into()],
        |content| content.groups[0].addresses = vec![vec![4, 192, 0, 2, 7].into(); ADDRESSES_MAX + 1],
    ];
    for change in wrong {
        assert!(matches!(content(change), Err(ParseLineError::Content { .. })));
    }
}

proptest! {
    #[test]
    fn one_mistyped_character_never_passes(at in 7_usize..1_000, to in prop::sample::select(b"abcdefghijklmnopqrstuvwxyz234567".to_vec())) {
        let mut line = usual().to_string().into_bytes();
        let at = 7 + at % (line.len() - 7);
        prop_assume!(line[at] != to);
        line[at] = to;
        prop_assert!(String::from_utf8(line).unwrap().parse::<Ticket>().is_err());
    }

    #[test]
    fn no_text_brings_the_parser_down(text in "(bombus(owner)?1)?.{0,200}", content: Vec<u8>) {
        let _ = text.parse::<Ticket>();
        let _ = text.parse::<OwnerKey>();
        if content.len() < 600 {
            let _ = one_line::encode(&TICKET, &content).parse::<Ticket>();
        }
    }
}
