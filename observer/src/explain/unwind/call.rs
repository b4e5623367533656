//! Whether the bytes before an address are a call instruction: only then can it be a return address.

/// Bytes before a return address that [`call_before`] looks at: the longest call.
pub(in crate::explain) const LONGEST: usize = 8;

/// A call instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::explain) enum Call {
    /// `call rel32`: to this address.
    Direct(u64),
    /// Through a register or memory.
    Indirect,
}

/// The call that ends right before `address`; `before` are the bytes up to it (at most [`LONGEST`] are needed).
///
/// x86-64: `E8 rel32`, or `FF /2` with an optional prefix, ModRM, SIB and displacement (Intel SDM, volume 2, CALL).
pub(in crate::explain) fn call_before(address: u64, before: &[u8]) -> Option<Call> {
    if let [.., 0xe8, a, b, c, d] = *before {
        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
        return Some(Call::Direct(address.wrapping_add_signed(distance)));
    }
    // The opcode FF stands this many bytes before the end; the rest is ModRM, SIB, displacement.
    (2..=7).find_map(|length| {
        let [0xff, modrm, rest @ ..] = before.get(before.len().checked_sub(length)?..)? else { return None };
        (length_of(*modrm, rest.first().copied())? == length).then_some(Call::Indirect)
    })
}

/// Length of `FF modrm …` if it is a near call.
fn length_of(modrm: u8, sib: Option<u8>) -> Option<usize> {
    let (mode, operation, memory) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    if operation != 2 {
        return None;
    }
    if mode == 3 {
        return Some(2);
    }
    let has_sib = memory == 4;
    let displacement = match mode {
        0 if memory == 5 || has_sib && sib? & 7 == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    Some(2 + usize::from(has_sib) + displacement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_every_length() {
        let indirect: [&[u8]; 10] = [
            &[0xff, 0xd0],                                     // call *%rax
            &[0x41, 0xff, 0xd4],                               // call *%r12
            &[0xff, 0x10],                                     // call *(%rax)
            &[0xff, 0x50, 0x18],                               // call *0x18(%rax)
            &[0xff, 0x14, 0xd0],                               // call *(%rax,%rdx,8)
            &[0xff, 0x54, 0x24, 0x08],                         // call *0x8(%rsp)
            &[0xff, 0x15, 0x10, 0x20, 0x30, 0x00],             // call *0x302010(%rip)
            &[0xff, 0x90, 0x00, 0x01, 0x00, 0x00],             // call *0x100(%rax)
            &[0xff, 0x94, 0x24, 0x00, 0x01, 0x00, 0x00],       // call *0x100(%rsp)
            &[0x41, 0xff, 0x94, 0x24, 0x00, 0x01, 0x00, 0x00], // call *0x100(%r12)
        ];
        for bytes in indirect {
            assert_eq!(call_before(0x1000, bytes), Some(Call::Indirect), "{bytes:x?}");
        }
        assert_eq!(call_before(0x1005, &[0x90, 0xe8, 0xfb, 0xff, 0xff, 0xff]), Some(Call::Direct(0x1000)));
    }

    #[test]
    fn what_is_no_call() {
        let others: [&[u8]; 7] = [
            &[],
            &[0xff],
            &[0x90; 8],
            &[0xff, 0xe0],                         // jmp *%rax
            &[0xff, 0x30],                         // push (%rax)
            &[0xff, 0x25, 0x10, 0x20, 0x30, 0x00], // jmp *0x302010(%rip)
            &[0xe8, 0x10, 0x20, 0x30],             // cut
        ];
        for bytes in others {
            assert_eq!(call_before(0x1000, bytes), None, "{bytes:x?}");
        }
    }
}
