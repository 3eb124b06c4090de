//! The reader against files made to break it: the shapes of past vulnerabilities, cuts and flipped bytes.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// A small file with every kind of metadata and three tensors.
fn file() -> GgufWriter {
    GgufWriter::new()
        .meta_str("general.architecture", "llama")
        .meta_u32("a.u32", 7)
        .meta_u64("a.u64", u64::MAX)
        .meta_f32("a.f32", 0.5)
        .meta_bool("a.bool", true)
        .meta_strings("a.strings", &["x", "", "é"])
        .meta_f32s("a.floats", &[1.0, -2.0])
        .meta_i32s("a.ints", &[-1, 2])
        .tensor("t.f32", &[3, 2], GgmlType::F32, &[1; 24])
        .tensor("t.q4", &[64, 2], GgmlType::Q4_1, &[2; 80])
        .tensor("t.one", &[1], GgmlType::F16, &[3; 2])
}

fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::parse(bytes, bytes.len() as u64)
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A header by hand: counts, then whatever follows.
fn header(version: u32, tensors: u64, keys: u64, rest: &[&[u8]]) -> Vec<u8> {
    let head = [b"GGUF", &version.to_le_bytes()[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat();
    [head, rest.concat()].concat()
}

fn info(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

fn key(name: &str, kind: u32, payload: &[u8]) -> Vec<u8> {
    [&string(name)[..], &kind.to_le_bytes(), payload].concat()
}

#[test]
fn what_is_written_is_read() {
    let bytes = file().to_bytes();
    let gguf = parse(&bytes).unwrap();
    assert_eq!((gguf.version(), gguf.header_bytes() % 32, gguf.keys().count()), (3, 0, 8));
    assert_eq!(gguf.str("general.architecture"), Some("llama"));
    assert_eq!((gguf.u64("a.u32"), gguf.u64("a.u64"), gguf.u64("a.f32")), (Some(7), Some(u64::MAX), None));
    assert_eq!((gguf.f32("a.f32"), gguf.bool("a.bool"), gguf.str("absent")), (Some(0.5), Some(true), None));
    assert_eq!(gguf.strings("a.strings").unwrap(), ["x", "", "é"]);
    assert_eq!(
        (gguf.numbers("a.floats").unwrap(), gguf.numbers("a.ints").unwrap()),
        (&[1.0, -2.0][..], &[-1.0, 2.0][..])
    );
    let tensor = gguf.tensor("t.q4").unwrap();
    assert_eq!((tensor.dims.as_slice(), tensor.kind, tensor.elements()), (&[64, 2][..], GgmlType::Q4_1, 128));
    assert_eq!((gguf.tensors().len(), gguf.tensor("t.q5")), (3, None));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    file().write(&path).unwrap();
    let opened = Gguf::open(&path).unwrap();
    assert_eq!(opened, gguf);
    let handle = File::open(&path).unwrap();
    assert_eq!(opened.read_tensor(&handle, tensor).unwrap(), [2; 80]);
    File::options().write(true).open(&path).unwrap().set_len(tensor.bytes.end - 1).unwrap();
    assert_eq!(opened.read_tensor(&handle, tensor).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let message = Gguf::open(&path).unwrap_err().to_string();
    assert!(message.contains("t.q4") && message.contains("download it again"), "{message}");
    assert!(matches!(Gguf::open(folder.path().join("absent")), Err(GgufError::Io { .. })));
    assert!(matches!(Gguf::open(folder.path()), Err(GgufError::Io { .. })));
}

#[test]
fn the_header_alone_suffices() {
    let bytes = file().to_bytes();
    let whole = parse(&bytes).unwrap();
    let header = &bytes[..whole.header_bytes() as usize];
    assert_eq!(Gguf::parse(header, bytes.len() as u64).unwrap(), whole);
}

#[test]
fn every_cut_is_refused_or_harmless() {
    let bytes = file().to_bytes();
    let last = parse(&bytes).unwrap().tensors().iter().map(|tensor| tensor.bytes.end).max().unwrap() as usize;
    for len in 0..last {
        let error = parse(&bytes[..len]).unwrap_err();
        assert!(matches!(error, GgufError::Truncated { .. }), "{len}: {error}");
    }
}

#[test]
fn wrong_beginnings_are_refused() {
    assert!(matches!(parse(b"ggml\x01\0\0\0"), Err(GgufError::Magic { .. })));
    assert!(matches!(parse(&header(1, 0, 0, &[])), Err(GgufError::Version(1))));
    assert!(matches!(parse(&header(4, 0, 0, &[])), Err(GgufError::Version(4))));
    assert!(matches!(parse(&header(3u32.swap_bytes(), 0, 0, &[])), Err(GgufError::BigEndian)));
    assert_eq!(parse(&header(2, 0, 0, &[])).unwrap().version(), 2);
}

#[test]
fn counts_that_overflow_are_refused_before_memory_is_taken() {
    for count in [TENSORS_MAX + 1, 1 << 32, u64::MAX / 8, u64::MAX] {
        assert!(matches!(parse(&header(3, count, 0, &[])), Err(GgufError::TooMany { .. })));
        assert!(matches!(parse(&header(3, 0, count, &[])), Err(GgufError::TooMany { .. })));
        // A string, a key and an array that claim more than there is.
        let claim = &count.to_le_bytes()[..];
        assert!(parse(&header(3, 0, 1, &[claim])).is_err());
        assert!(parse(&header(3, 0, 1, &[&key("k", 8, claim)])).is_err());
        for kind in 0u32..13 {
            let array = [&kind.to_le_bytes()[..], claim].concat();
            assert!(parse(&header(3, 0, 1, &[&key("k", 9, &array)])).is_err(), "{kind} {count}");
        }
    }
    // Many arrays, each below the bound: their sum is bounded, too.
    let array = [&0u32.to_le_bytes()[..], &(1u64 << 21).to_le_bytes(), &vec![0; 1 << 21]].concat();
    let keys: Vec<Vec<u8>> = (0..3).map(|i| key(&format!("k{i}"), 9, &array)).collect();
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    assert!(parse(&header(3, 0, 2, &keys)).is_ok());
    assert!(matches!(parse(&header(3, 0, 3, &keys)), Err(GgufError::TooMany { .. })));
    // A header that goes on beyond its bound, of strings of the longest kind.
    let long = vec![b'x'; STRING_BYTES_MAX as usize];
    let keys: Vec<Vec<u8>> =
        (0..65).map(|i| key(&format!("k{i}"), 8, &[&STRING_BYTES_MAX.to_le_bytes()[..], &long].concat())).collect();
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    assert!(matches!(parse(&header(3, 0, 65, &keys)), Err(GgufError::HeaderTooLong { .. })));
}

#[test]
fn bad_metadata_is_refused() {
    let nested = key("k", 9, &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0; 64]].concat());
    assert!(matches!(parse(&header(3, 0, 1, &[&nested])), Err(GgufError::NestedArray { .. })));
    assert!(matches!(parse(&header(3, 0, 1, &[&key("k", 13, &[])])), Err(GgufError::ValueType { kind: 13, .. })));
    let unknown = key("k", 9, &[&99u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat());
    assert!(matches!(parse(&header(3, 0, 1, &[&unknown])), Err(GgufError::ValueType { kind: 99, .. })));
    assert!(matches!(parse(&header(3, 0, 1, &[&key("k", 7, &[2])])), Err(GgufError::Boolean { value: 2, .. })));
    let twice = key("k", 7, &[1]);
    assert!(matches!(parse(&header(3, 0, 2, &[&twice, &twice])), Err(GgufError::DuplicateKey(_))));
    let text = key("k", 8, &[&2u64.to_le_bytes()[..], b"\xff\xfe"].concat());
    assert!(matches!(parse(&header(3, 0, 1, &[&text])), Err(GgufError::NotUtf8 { .. })));
    for (kind, payload) in [(4, &0u32.to_le_bytes()[..]), (4, &48u32.to_le_bytes()), (10, &(1u64 << 63).to_le_bytes())]
    {
        let alignment = key("general.alignment", kind, payload);
        assert!(matches!(parse(&header(3, 0, 1, &[&alignment])), Err(GgufError::Alignment(_))));
    }
    let alignment = key("general.alignment", 8, &string("32"));
    assert!(matches!(parse(&header(3, 0, 1, &[&alignment])), Err(GgufError::Alignment(_))));
}

#[test]
fn bad_tensors_are_refused() {
    let one = |info: &[u8]| parse(&header(3, 1, 0, &[info, &[0; 1 << 12]]));
    assert!(one(&info("t", &[4], 0, 0)).is_ok());
    assert!(matches!(one(&info("t", &[], 0, 0)), Err(GgufError::Dimensions { dims: 0, .. })));
    assert!(matches!(one(&info("t", &[1; 5], 0, 0)), Err(GgufError::Dimensions { dims: 5, .. })));
    for kind in [4, 5, 31, 33, 36, 43, u32::MAX] {
        assert!(matches!(one(&info("t", &[4], kind, 0)), Err(GgufError::TensorType { .. })), "{kind}");
    }
    // Products that wrap to something small were how readers were made to write out of bounds.
    for dims in [&[0][..], &[4, 0], &[1 << 32, 1 << 32], &[1 << 62, 4], &[u64::MAX], &[u64::MAX / 4 + 2, 1, 1, 1]] {
        assert!(matches!(one(&info("t", dims, 0, 0)), Err(GgufError::Shape { .. })), "{dims:?}");
    }
    assert!(matches!(one(&info("t", &[33], 3, 0)), Err(GgufError::Shape { .. })), "no whole block");
    assert!(matches!(one(&info("t", &[4], 0, 16)), Err(GgufError::Misaligned { offset: 16, .. })));
    for offset in [1 << 12, 1 << 40, u64::MAX - 31] {
        assert!(matches!(one(&info("t", &[4], 0, offset)), Err(GgufError::Truncated { .. })), "{offset}");
    }
    let two = |a: &[u8], b: &[u8]| parse(&header(3, 2, 0, &[a, b, &[0; 1 << 12]]));
    assert!(two(&info("a", &[8], 0, 32), &info("b", &[8], 0, 0)).is_ok());
    assert!(matches!(two(&info("a", &[9], 0, 0), &info("b", &[8], 0, 32)), Err(GgufError::Overlap { .. })));
    assert!(matches!(two(&info("a", &[8], 0, 0), &info("b", &[8], 0, 0)), Err(GgufError::Overlap { .. })));
    assert!(matches!(two(&info("a", &[8], 0, 0), &info("a", &[8], 0, 32)), Err(GgufError::DuplicateTensor(_))));
}

#[test]
fn types_have_consistent_sizes() {
    for kind in GgmlType::ALL {
        assert_eq!(GgmlType::from_code(kind.code()), Some(*kind));
        assert_eq!(kind.tensor_bytes(&[kind.block_elements(), 3]), Some(3 * kind.block_bytes()), "{kind}");
    }
    assert_eq!(GgmlType::Q4_1.tensor_bytes(&[576, 49_152]), Some(576 / 32 * 20 * 49_152));
    assert_eq!(GgmlType::F32.tensor_bytes(&[]), None);
}

/// Whatever is accepted must be safe to use: inside the file, aligned, apart.
fn accepted_is_sound(bytes: &[u8]) {
    let Ok(gguf) = parse(bytes) else { return };
    let mut ranges: Vec<_> = gguf.tensors().iter().map(|tensor| tensor.bytes.clone()).collect();
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.iter().all(|range| range.start < range.end && range.end <= bytes.len() as u64));
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    for tensor in gguf.tensors() {
        assert_eq!(tensor.kind.tensor_bytes(&tensor.dims), Some(tensor.bytes.end - tensor.bytes.start));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn flipped_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = file().to_bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        accepted_is_sound(&bytes);
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400), tensors in 0u64..4, keys in 0u64..4) {
        accepted_is_sound(&header(3, tensors, keys, &[&noise]));
    }
}

#[test]
fn tensors_can_be_written_when_the_file_is() {
    let (small, large) = ([1.5f32, -2.0, 3.0], vec![7u8; 34 * 3]);
    let bytes: Vec<u8> = small.iter().flat_map(|v| v.to_le_bytes()).collect();
    let given = GgufWriter::new()
        .meta_u32("k", 9)
        .tensor("first", &[3], GgmlType::F32, &bytes)
        .tensor("second", &[32, 3], GgmlType::Q8_0, &large)
        .tensor("third", &[3], GgmlType::F32, &bytes);
    let promised = GgufWriter::new()
        .meta_u32("k", 9)
        .tensor("first", &[3], GgmlType::F32, &bytes)
        .promise("second", &[32, 3], GgmlType::Q8_0)
        .promise("third", &[3], GgmlType::F32);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("promised.gguf");
    let asked = std::cell::RefCell::new(Vec::new());
    let fill = |name: &str, kind: GgmlType, count: u64, to: &mut dyn std::io::Write| {
        asked.borrow_mut().push((name.to_owned(), kind, count));
        to.write_all(if name == "second" { &large } else { &bytes })
    };
    promised.write_filling(&path, fill).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), given.to_bytes());
    assert_eq!(asked.take(), [("second".to_owned(), GgmlType::Q8_0, 102), ("third".to_owned(), GgmlType::F32, 12)]);
    let short = promised.write_filling(&path, |_, _, _, to| to.write_all(&[1])).unwrap_err();
    assert_eq!(short.to_string(), "second has 102 bytes and 1 came");
}
