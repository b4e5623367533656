//! The BTF reader on types made by hand, cut short and damaged.

use super::{Btf, BtfError};

/// Writes a small BTF: `int` (4 bytes), `long` (8), typedef `alias` = long,
/// `struct inner { int a; }`, `struct outer { int x; union { struct inner in; int u; }; alias y; int f:3; }`.
fn sample() -> Vec<u8> {
    let mut strings = vec![0u8];
    let mut name = |text: &str| {
        let at = strings.len() as u32;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    let (int, long, alias, inner, outer) = (name("int"), name("long"), name("alias"), name("inner"), name("outer"));
    let (a, x, in_, u, y, f) = (name("a"), name("x"), name("in"), name("u"), name("y"), name("f"));
    let info = |kind: u32, vlen: u32, flag: u32| flag << 31 | kind << 24 | vlen;
    let words: Vec<u32> = vec![
        int,
        info(1, 0, 0),
        4,
        32, // 1
        long,
        info(1, 0, 0),
        8,
        64, // 2
        alias,
        info(8, 0, 0),
        2, // 3
        inner,
        info(4, 1, 0),
        4,
        a,
        1,
        0, // 4
        0,
        info(5, 2, 0),
        4,
        in_,
        4,
        0,
        u,
        1,
        0, // 5
        outer,
        info(4, 4, 1),
        24,
        x,
        1,
        0,
        0,
        5,
        32,
        y,
        3,
        64,
        f,
        1,
        3 << 24 | 128, // 6
    ];
    let types: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let mut data = Vec::new();
    data.extend_from_slice(&0xeb9f_u16.to_ne_bytes());
    data.extend_from_slice(&[1, 0]);
    for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
        data.extend_from_slice(&word.to_ne_bytes());
    }
    data.extend_from_slice(&types);
    data.extend_from_slice(&strings);
    data
}

#[test]
fn members_are_found_through_typedefs_and_anonymous_members() -> Result<(), BtfError> {
    let data = sample();
    let btf = Btf::parse(&data)?;
    assert_eq!(btf.offset("outer", "x", 4)?, 0);
    assert_eq!(btf.offset("outer", "in.a", 4)?, 4);
    assert_eq!(btf.offset("outer", "u", 4)?, 4);
    assert_eq!(btf.offset("outer", "y", 8)?, 8);
    assert_eq!(btf.structure_size("outer")?, 24);
    Ok(())
}

#[test]
fn a_wrong_question_has_a_clear_answer() -> Result<(), BtfError> {
    let data = sample();
    let btf = Btf::parse(&data)?;
    assert!(matches!(btf.offset("outer", "y", 4), Err(BtfError::Size { found: 8, expected: 4, .. })));
    assert!(matches!(btf.offset("outer", "z", 4), Err(BtfError::NoMember { .. })));
    assert!(matches!(btf.offset("outer", "x.a", 4), Err(BtfError::NoMember { .. })));
    assert!(matches!(btf.offset("nothing", "x", 4), Err(BtfError::NoStruct(_))));
    assert!(matches!(btf.offset("outer", "f", 4), Err(BtfError::BitField { .. })));
    Ok(())
}

#[test]
fn truncated_and_corrupted_input_never_panics() {
    let data = sample();
    let ask = |bytes: &[u8]| {
        if let Ok(btf) = Btf::parse(bytes) {
            let _ = btf.member("outer", "in.a");
            let _ = btf.member("outer", "f");
            let _ = btf.member("outer", "y");
        }
    };
    for len in 0..data.len() {
        assert!(Btf::parse(&data[..len]).is_err(), "{len} of {} bytes were taken as whole", data.len());
    }
    for at in 0..data.len() {
        for value in [0x00, 0x01, 0x04, 0x7f, 0x80, 0xff] {
            let mut bytes = data.clone();
            bytes[at] = value;
            ask(&bytes);
        }
    }
    assert!(matches!(Btf::parse(&[0; 64]), Err(BtfError::Magic(0))));
}

#[test]
fn a_type_that_contains_itself_ends() {
    // typedef 1 -> 1, and a structure whose anonymous member is itself.
    let words: Vec<u32> = vec![1, 8 << 24, 1, 1, 4 << 24 | 1, 4, 0, 2, 0];
    let types: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let mut data = vec![0x9f, 0xeb, 1, 0];
    for word in [24, 0, types.len() as u32, types.len() as u32, 3] {
        data.extend_from_slice(&word.to_ne_bytes());
    }
    data.extend_from_slice(&types);
    data.extend_from_slice(&[0, b's', 0]);
    match Btf::parse(&data) {
        Ok(btf) => assert!(btf.member("s", "missing").is_err()),
        Err(error) => panic!("{error}"),
    }
}
