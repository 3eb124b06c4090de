//! Keys are made, recognized and refused. Ledgers lie in directories that vanish.
#![allow(clippy::unwrap_used)]

use super::super::store::SqliteStore;
use super::super::store::stub::Stub;
use super::*;

async fn open(dir: &Path) -> Result<Keys<SqliteStore>, KeyError> {
    Keys::open(dir, Arc::new(SqliteStore::open(dir, cuckoo_wire::PeerId([1; 32])).await.unwrap())).await
}

#[test]
fn checksums_and_digits_are_the_usual_ones() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    assert_eq!(crc32(b""), 0);
    assert_eq!(base62(&[0], 3), "000");
    assert_eq!(base62(&[61], 1), "z");
    assert_eq!(base62(&[0x0F, 0x04], 3), "100", "62² = 0x0F04");
    assert_eq!(base62(&[0xFF; 20], SECRET_CHARS).len(), SECRET_CHARS, "160 bits fit");
    assert_eq!(base62(&[0xFF; 4], CHECKSUM_CHARS), "4gfFC3", "2³² - 1");
}

#[test]
fn every_change_of_a_character_is_noticed() {
    let key = generate([0x5A; 20]);
    assert_eq!(key.len(), 41);
    assert!(is_well_formed(&key));
    for at in 0..key.len() {
        for other in [b'0', b'Q', b'z', b'-'] {
            let mut changed = key.clone().into_bytes();
            if changed[at] != other {
                changed[at] = other;
                assert!(!is_well_formed(std::str::from_utf8(&changed).unwrap()), "character {at} as {other}");
            }
        }
    }
    for bad in ["", "ck_live_", &key[1..], &format!("{key}0"), &"é".repeat(20), &format!("ck_live_{}é", &key[8..39])]
    {
        assert!(!is_well_formed(bad), "{bad}");
    }
}

#[tokio::test]
async fn a_key_opens_its_account_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let keys = open(dir.path()).await.unwrap();
    let (a, client_a) = keys.create("a", 1).await.unwrap();
    let (b, client_b) = keys.create("b", 2).await.unwrap();
    assert_ne!(client_a, client_b);
    let stranger = ApiKey(generate([7; 20]));
    for _ in 0..2 {
        assert_eq!(keys.authenticate(&a).await, Ok(Some(client_a)));
        assert_eq!(keys.authenticate(&b).await, Ok(Some(client_b)));
        assert_eq!(keys.authenticate(&stranger).await, Ok(None));
    }
    let listed = keys.list().await.unwrap();
    assert_eq!(listed.iter().map(|k| k.label.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(listed[0].prefix, a.0[..16]);
    drop(keys);
    let again = open(dir.path()).await.unwrap();
    assert_eq!(again.authenticate(&a).await, Ok(Some(client_a)));
}

#[tokio::test]
async fn the_disk_has_no_key_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    let keys = open(dir.path()).await.unwrap();
    let (key, _) = keys.create("x", 1).await.unwrap();
    let secret = &key.0.as_bytes()[KEY_PREFIX.len() + SHOWN_CHARS..];
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|w| w == secret));
    }
}

#[tokio::test]
async fn the_pepper_is_private_and_irreplaceable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(PEPPER_FILE);
    drop(open(dir.path()).await.unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(open(dir.path()).await, Err(KeyError::Exposed { mode: 0o640, .. })));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&path, b"cuckoo-pepper-1\nshort").unwrap();
    assert!(matches!(open(dir.path()).await, Err(KeyError::Malformed { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(open(dir.path()).await, Err(KeyError::Mismatch { .. })), "a new pepper knows no old key");
}

#[tokio::test]
async fn labels_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let keys = open(dir.path()).await.unwrap();
    assert_eq!(keys.create(&"x".repeat(65), 1).await.unwrap_err(), KeyError::Label(65));
    assert_eq!(keys.create("a\nb", 1).await.unwrap_err(), KeyError::Label(3));
    keys.create(&"x".repeat(64), 1).await.unwrap();
}

#[tokio::test]
async fn a_malformed_key_is_refused_without_asking_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::open(dir.path(), Arc::new(Stub::default())).await.unwrap();
    let mistyped = generate([9; 20]).replace("ck_live_", "ck_test_");
    for bad in [mistyped, String::new(), "ck_live_".to_owned(), "Bearer x".to_owned()] {
        assert_eq!(keys.authenticate(&ApiKey(bad)).await, Ok(None));
    }
}
