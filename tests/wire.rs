//! The bytes of every message, so that a change of the protocol cannot go unnoticed; and noise for the decoders.

use std::collections::BTreeMap;

use cuckoo_wire::message::*;
use cuckoo_wire::{FrameError, PeerId, decode, encode};
use proptest::prelude::*;

const MAX: usize = 1 << 20;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[track_caller]
fn snapshot<T>(message: &T, bytes: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let encoded = encode(message, MAX).unwrap();
    assert_eq!(hex(&encoded), bytes, "{message:?}: the protocol changed; raise PROTOCOL_VERSION");
    assert_eq!(decode::<T>(&encoded).unwrap(), *message);
}

fn sampling() -> Sampling {
    Sampling {
        temperature: 0.5,
        top_k: 40,
        logit_bias: BTreeMap::from([(7, -1.0)]),
        seed: Some(300),
        min_tokens: 1,
        allowed_token_ids: [300].into(),
        ..Sampling::default()
    }
}

const SAMPLING: &str = "0000003f280000803f000000000000803f00000000000000000107000080bf01ac02\
    0000803f000000000000e03f02ffffffff0f00000000cdcccc3d0101ac02";
const PRICE: Price = Price { input_per_mtok: 1_000_000, output_per_mtok: 2 };

#[test]
fn calls_have_these_bytes() {
    snapshot(&Call::Models, "0501");
    let wallet = Call::Wallet { api_key: Some(ApiKey("k".into())), entries_max: 3 };
    snapshot(&wallet, "050201016b03");
    let call = ToolCall { id: "i".into(), name: "f".into(), arguments: "{}".into() };
    let chat = Prompt::Chat(vec![
        ChatMessage::new("user", "hi"),
        ChatMessage { calls: vec![call], ..ChatMessage::new("assistant", "") },
        ChatMessage { answers: Some("i".into()), ..ChatMessage::new("tool", "o") },
    ]);
    let tool = Tool { name: "f".into(), description: None, parameters: Some("{}".into()), strict: true };
    let tools = Tools { tools: vec![tool], choice: ToolChoice::Named("f".into()), parallel: true };
    let generate = |prompt| {
        Call::Generate(Generate {
            api_key: ApiKey("k".into()),
            model: "m".into(),
            prompt,
            sampling: sampling(),
            stop: vec!["x".into()],
            max_tokens: Some(5),
            ignore_eos: true,
            max_price: Some(PRICE),
            stop_token_ids: vec![9],
            include_stop: true,
            bad_words: vec!["y".into()],
            dry_sequence_breakers: Some(vec![":".into()]),
            logprobs: Some(2),
            prompt_logprobs: None,
            echo: true,
            constraint: Some(Constraint::Regex("a".into())),
            tools: Some(tools.clone()),
            class: ServiceClass::Batch,
        })
    };
    let tail = format!(
        "{SAMPLING}0101780105010 1c0843d02010901010179 0101013a01020001 01020161 01010166000102 7b7d01030166 01 02"
    )
    .replace(' ', "");
    snapshot(&generate(chat), &format!(
            "0500016b016d0003 0475736572 0268690000 09617373697374616e74 00 0101690166027b7d 00 04746f6f6c 016f 00 010169 {tail}"
        )
        .replace(' ', ""),
    );
    snapshot(&generate(Prompt::Text("hi".into())), &format!("0500016b016d01026869{tail}"));
    snapshot(&generate(Prompt::Tokens(vec![1, 300])), &format!("0500016b016d020201ac02{tail}"));
}

#[test]
fn calls_for_vectors_have_these_bytes() {
    let inputs = vec![EmbedInput::Text("hi".into()), EmbedInput::Tokens(vec![1, 300])];
    let embed =
        Embed { dimensions: Some(384), max_price: Some(PRICE), ..Embed::new(ApiKey("k".into()), "m".into(), inputs) };
    snapshot(&Call::Embed(embed), "0503016b016d020002686901020 1ac02018003 01c0843d02".replace(' ', "").as_str());
}

#[test]
fn explanations_have_these_bytes() {
    let request = RequestId([9; 16]);
    let id = "09".repeat(16);
    snapshot(&Call::Explain { api_key: ApiKey("k".into()), request }, &format!("0504016b{id}"));
    snapshot(&Call::Resume { api_key: ApiKey("k".into()), request, after: 300 }, &format!("0505016b{id}ac02"));
    let terms = Terms { network: 1.0, risk: -0.5, ..Terms::default() };
    let candidate = Candidate {
        miner: PeerId([8; 32]),
        replica: ReplicaId(3),
        cached_tokens: 300,
        terms,
        ttft_p95_ms: 1.0,
        itl_ms: 1.0,
        meets: true,
        found_by: FoundBy::Ring,
    };
    let placement = PlacementReasons {
        waited_ms: 1.0,
        waiting: 4,
        replicas: 5,
        other_numerics: 2,
        class: ServiceClass::Interactive,
        served_tokens: 6,
        prompt_tokens: 7,
        candidates: vec![candidate],
    };
    let terms = format!("0000803f{}000000bf", "0".repeat(40));
    snapshot(
        &Reply::Explained(Explanation { request, placements: vec![placement] }),
        &format!("0508{id}010000803f04050200060701{}03ac02{terms}0000803f0000803f0101", "08".repeat(32)),
    );
    for text in [format!("req_{id}"), format!("chatcmpl-{id}"), format!("cmpl-{id}"), id] {
        assert_eq!(text.parse(), Ok(request));
    }
    for text in ["", "req_09", "req_zz090909090909090909090909090909", "0909090909090909090909090909090g"] {
        assert!(text.parse::<RequestId>().is_err(), "{text}");
    }
}

#[test]
fn replies_have_these_bytes() {
    let id = RequestId([9; 16]);
    snapshot(&Reply::Accepted { request: id, prompt_tokens: 4 }, &format!("0500{}04", "09".repeat(16)));
    snapshot(
        &Reply::Delta { first: 1, tokens: vec![5, 6], text: "é".into(), logprobs: vec![], calls: vec![] },
        "05010102050602c3a90000",
    );
    let token = |special, logprob| TokenLogprob { token: 300, bytes: vec![0xc3], special, logprob };
    let logprobs = vec![TokenLogprobs { chosen: token(true, None), rank: 3, top: vec![token(false, Some(-1.0))] }];
    let entry = "01ac0201c301000301ac0201c30001000080bf";
    snapshot(&Reply::Prompt { text: "a".into(), logprobs: logprobs.clone() }, &format!("05060161{entry}"));
    let begun = Some(("i".into(), "f".into()));
    let calls = vec![CallDelta { index: 2, begun, arguments: "{".into() }];
    let delta = Reply::Delta { first: 1, tokens: vec![5], text: "".into(), logprobs, calls };
    snapshot(&delta, &format!("050101010500{entry}01020101690166017b"));
    let reason = FinishReason::ToolCalls;
    snapshot(&Reply::Finished { reason, usage: Usage::default() }, "050202 00000000000000".replace(' ', "").as_str());
    let usage =
        Usage { prompt_tokens: 1, completion_tokens: 2, cost: 3, miner: 4, author: 5, network: 6, migrations: 7 };
    snapshot(&Reply::Finished { reason: FinishReason::Length, usage }, "05020101020304050607");
    let refusal =
        Refusal { code: RefusalCode::Internal, message: "m".into(), param: Some("p".into()), retry_after_s: Some(7) };
    snapshot(&Reply::Refused(refusal), "05030b016d0101700107");
    let info = ModelInfo {
        name: "m".into(),
        context_tokens: 1,
        quantization: "q".into(),
        license: "l".into(),
        author: PeerId([8; 32]),
        royalty_bps: 2,
        created_unix: 3,
        replicas: 4,
        lowest_ask: None,
        embedding_dims: Some(384),
        parent: Some("b".into()),
    };
    snapshot(&Reply::Models(vec![info]), &format!("050401016d010171016c{}02030400018003010162", "08".repeat(32)));
    snapshot(&Reply::Embedding { index: 300, vector: vec![1.0, -0.5] }, "0507ac02020000803f000000bf");
    let entry = WalletEntry {
        at_ms: -1,
        account: "a".into(),
        counterparty: "b".into(),
        amount: 2,
        kind: "k".into(),
        request: Some(id),
    };
    let wallet = Wallet { balances: vec![("a".into(), -3)], entries: vec![entry] };
    snapshot(&Reply::Wallet(wallet), &format!("05050101610501010161016204016b01{}", "09".repeat(16)));
}

#[test]
fn a_miners_messages_have_these_bytes() {
    snapshot(&Hello { name: "n".into(), program: "p".into() }, "05016e0170");
    let offer = Offer {
        replica: ReplicaId(1),
        weights: WeightsHash([2; 32]),
        context_tokens: 3,
        block_tokens: 16,
        ask: PRICE,
        window: Window { sequences: 4, blocks: 300 },
        task: Task::Embed,
        adapters: vec![WeightsHash([3; 32])],
        device: 300,
        numerics: Numerics { contract: 300, kv: KvFormat::Q8_0, tensor_cores: Some(90) },
    };
    let (weights, adapter) = ("02".repeat(32), "03".repeat(32));
    snapshot(
        &ReplicaFrame::Offer(offer),
        &format!("050001{weights}0310c0843d0204ac020101{adapter}ac02 ac02 02 015a").replace(' ', ""),
    );
    let item = |end| StepItem::new(SequenceId(1), 2, vec![3], end);
    let ends = vec![item(None), item(Some(End::Stop)), item(Some(End::Failed("f".into())))];
    let step = Step {
        window: Window { sequences: 1, blocks: 2 },
        batch: 3,
        blocks_used: 4,
        steps: 5,
        rows: 6,
        took_us: 7,
        cached: vec![8],
        evicted: vec![9, 300],
        items: ends,
    };
    snapshot(
        &ReplicaFrame::Step(step),
        "050101020304 050607 0108 0209ac02 03 010201030000 00 01020103010000 00 010201030103016600 00"
            .replace(' ', "")
            .as_str(),
    );
    let logprobs = vec![Logprobs { logprob: -1.0, rank: 2, top: vec![(300, -0.5)] }];
    let item = StepItem { prompt_logprobs: logprobs.clone(), logprobs, ..item(None) };
    let entry = "01000080bf0201ac02000000bf";
    snapshot(
        &ReplicaFrame::Step(Step { items: vec![item], ..Step::default() }),
        &format!("0501000000000000000000010102010300{entry}{entry}"),
    );
    let embedded = StepItem::new(SequenceId(1), 0, vec![], Some(End::Embedded(vec![1.0])));
    snapshot(
        &ReplicaFrame::Step(Step { items: vec![embedded], ..Step::default() }),
        "0501000000000000000000 01010000010401 0000803f 0000".replace(' ', "").as_str(),
    );
    let model = Loadable { weights: WeightsHash([2; 32]), memory_bytes: 300, load_ms: 5, ask: PRICE };
    let capacity = Capacity { device: 1, memory_bytes: 3, models: vec![model] };
    snapshot(&FromMiner::Devices(vec![capacity]), &format!("05000101030 1{weights}ac0205c0843d02").replace(' ', ""));
    snapshot(&ReplicaFrame::Drain, "0502");
    snapshot(&ReplicaFrame::Beat(Beat { steps: 300, due_ms: 60 }), "0503ac023c");
    assert!(Beat { steps: 0, due_ms: 5_000 }.check().is_ok() && Beat { steps: 0, due_ms: 5_001 }.check().is_err());
}

#[test]
fn messages_to_a_miner_have_these_bytes() {
    snapshot(&ToMiner::Welcome { scheduler: "s".into() }, "05000173");
    let refusal = Refusal::new(RefusalCode::NotAllowed, "no");
    snapshot(&ToMiner::Refused(refusal), "050108026e6f0000");
    let (replica, sequence) = (ReplicaId(1), SequenceId(2));
    let assign = Assign {
        replica,
        sequence,
        tokens: vec![3, 4],
        prompt_tokens: 1,
        max_new: 5,
        sampling: sampling(),
        seed: 6,
        stop_tokens: vec![7],
        credit: 64,
        blocks: 8,
        cache_salt: [9; 16],
        bad_words: vec![vec![1, 2]],
        dry_breakers: vec![5],
        logprobs: None,
        prompt_logprobs: Some(PromptLogprobs { top: 2, from: 1 }),
        constraint: Some(Constraint::Choice(vec!["a".into(), "b".into()])),
        adapter: Some(WeightsHash([8; 32])),
    };
    let adapter = "08".repeat(32);
    let salt = "09".repeat(16);
    snapshot(
        &ToMiner::Assign(assign),
        &format!("0502010202030401 05{SAMPLING}0601074008{salt}0102010 20105 00010201 0103020161016201{adapter}")
            .replace(' ', ""),
    );
    let functions = vec![("f".into(), "{}".into())];
    let calls = CallConstraint { syntax: "s".into(), functions, text: true, many: false };
    snapshot(&Constraint::Calls(calls), "0505017301016602 7b7d0100".replace(' ', "").as_str());
    snapshot(&ToMiner::Encode(Encode { replica, sequence, tokens: vec![3, 300], blocks: 1 }), "050501020203ac0201");
    snapshot(&ToMiner::Cancel { replica, sequence }, "05030102");
    snapshot(&ToMiner::Credit { replica, sequence, tokens: 128 }, "050401028001");
    let serve = ToMiner::Serve { device: 300, weights: vec![WeightsHash([2; 32])] };
    snapshot(&serve, &format!("0506ac0201{}", "02".repeat(32)));
}

#[test]
fn an_offer_names_each_adapter_once_and_not_too_many() {
    let offer = |adapters: Vec<u16>| {
        let hash = |n: u16| WeightsHash(std::array::from_fn(|i| n.to_le_bytes()[i % 2]));
        let offer = Offer {
            replica: ReplicaId(1),
            weights: WeightsHash([2; 32]),
            context_tokens: 3,
            block_tokens: 16,
            ask: PRICE,
            window: Window::default(),
            task: Task::Generate,
            adapters: adapters.into_iter().map(hash).collect(),
            device: 0,
            numerics: Numerics::exact(1, KvFormat::F16),
        };
        offer.check()
    };
    let most = cuckoo_wire::limits::ADAPTERS_MAX as u16;
    assert!(offer((0..most).collect()).is_ok());
    assert!(offer((0..=most).collect()).is_err());
    assert!(offer(vec![1, 2, 1]).is_err());
}

#[test]
fn an_offer_computes_in_a_way_that_there_is() {
    let (kv, exact) = (KvFormat::BF16, Numerics::exact(1, KvFormat::BF16));
    assert_eq!((exact.check(), Numerics::exact(u16::MAX, kv).check()), (Ok(()), Ok(())));
    assert!(Numerics::exact(0, kv).check().is_err());
    for (capability, is_sound) in [(0, false), (69, false), (70, true), (999, true), (1_000, false), (u16::MAX, false)]
    {
        let fast = Numerics { tensor_cores: Some(capability), ..exact };
        assert_eq!(fast.check().is_ok(), is_sound, "{capability}");
        assert_ne!(fast, exact);
    }
    let fast = Numerics { tensor_cores: Some(120), ..exact };
    assert_eq!(fast.to_string(), "contract 1, keys and values as bf16, tensor cores of 12.0");
    // Formats that nobody knows are no message.
    let bytes = postcard::to_stdvec(&exact).unwrap();
    assert_eq!(bytes, [1, 1, 0]);
    assert!(postcard::from_bytes::<Numerics>(&[1, 3, 0]).is_err());
}

#[test]
fn a_miner_names_each_device_and_model_once_and_not_too_many() {
    let model = |n: u8| Loadable { weights: WeightsHash([n; 32]), memory_bytes: 1, load_ms: 1, ask: PRICE };
    let devices = |devices: &[(u32, &[u8])]| {
        let capacity = |(device, models): &(u32, &[u8])| Capacity {
            device: *device,
            memory_bytes: 1,
            models: models.iter().map(|n| model(*n)).collect(),
        };
        FromMiner::Devices(devices.iter().map(capacity).collect()).check()
    };
    let most: Vec<u8> = (0..cuckoo_wire::limits::LOADABLE_MAX as u8).collect();
    assert!(devices(&[(0, &most), (7, &most), (3, &[])]).is_ok());
    let more: Vec<u8> = (0..=most.len() as u8).collect();
    assert!(devices(&[(0, &more)]).is_err());
    assert!(devices(&[(0, &[1, 2, 1])]).is_err());
    assert!(devices(&[(0, &[1]), (0, &[2])]).is_err());
    let many: Vec<(u32, &[u8])> = (0..=cuckoo_wire::limits::DEVICES_MAX as u32).map(|n| (n, &[][..])).collect();
    assert!(devices(&many).is_err() && devices(&many[1..]).is_ok());
    let dear = Loadable { ask: Price { input_per_mtok: u64::MAX, output_per_mtok: 0 }, ..model(1) };
    let capacity = Capacity { device: 0, memory_bytes: 1, models: vec![dear] };
    assert!(FromMiner::Devices(vec![capacity]).check().is_err());
}

#[test]
fn another_version_is_named() {
    let error = decode::<Call>(&[9, 1]).unwrap_err();
    assert!(matches!(error, FrameError::Version { theirs: 9 }));
    assert!(error.to_string().contains("version 9") && error.to_string().contains("update"), "{error}");
}

proptest! {
    #[test]
    fn noise_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..400), version in any::<bool>()) {
        if version && !bytes.is_empty() {
            bytes[0] = cuckoo_wire::limits::PROTOCOL_VERSION;
        }
        let _ = decode::<Call>(&bytes).map(|c| match c {
            Call::Generate(g) => _ = g.check(),
            Call::Embed(e) => _ = e.check(),
            Call::Models | Call::Wallet { .. } | Call::Explain { .. } | Call::Resume { .. } => {}
        });
        let _ = decode::<Reply>(&bytes);
        let _ = decode::<ToMiner>(&bytes).map(|m| match m {
            ToMiner::Assign(a) => _ = a.check(),
            ToMiner::Encode(e) => _ = e.check(),
            _ => {}
        });
        let _ = decode::<ReplicaFrame>(&bytes).map(|f| match f {
            ReplicaFrame::Step(step) => _ = step.check(),
            ReplicaFrame::Beat(beat) => _ = beat.check(),
            ReplicaFrame::Offer(offer) => _ = offer.check(),
            ReplicaFrame::Drain => {}
        });
        let _ = decode::<Hello>(&bytes).map(|h| h.check());
        let _ = decode::<FromMiner>(&bytes).map(|m| m.check());
    }

    /// A message with a few bytes changed is refused or is another message; it is never a crash, and never huge.
    #[test]
    fn damaged_messages_never_panic(at in 0usize..200, with in any::<u8>(), cut in 0usize..200) {
        let step = Step {
            items: (0..20).map(|i| StepItem::new(SequenceId(i), 0, vec![1; 5], None)).collect(),
            ..Step::default()
        };
        let mut bytes = encode(&ReplicaFrame::Step(step), MAX).unwrap().to_vec();
        let at = 1 + at % (bytes.len() - 1);
        bytes[at] = with;
        let _ = decode::<ReplicaFrame>(&bytes);
        bytes.truncate(cut);
        let _ = decode::<ReplicaFrame>(&bytes);
    }
}
