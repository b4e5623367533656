#!/usr/bin/env bash
# Makes the seeds of tests/fuzz/corpus anew. Inputs that once crashed (`found-*`) are left alone.
# Needs gcc, binutils, xz and python3; other versions of them make other bytes, which is no harm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
targets="call cgroup demangle image maps names pclntab perf_map program unwind"
for target in $targets; do
    mkdir -p "corpus/$target"
    find "corpus/$target" -type f -name 'seed-*' -delete
done

cat >"$work/a.c" <<'C'
static inline __attribute__((always_inline)) int inlined(volatile int *p) { return *p += 41; }
static __attribute__((noinline, noclone)) int leaf(volatile int *p) { return inlined(p) + 1; }
static __attribute__((noinline, noclone)) int middle(volatile int *p) { return leaf(p) * 3; }
__attribute__((noinline)) int outer(volatile int *p) { volatile int room[*p & 7]; room[0] = middle(p); return room[0]; }
void _start(void) { volatile int v = 1; for (;;) v = outer(&v); }
C
cat >"$work/a.cc" <<'C'
namespace deep { template <class T> struct Pair { T a, b; __attribute__((noinline)) T sum(Pair<T> *o) volatile { return a + o->b; } }; }
volatile deep::Pair<long> pair;
extern "C" void _start() { deep::Pair<long> o{1, 2}; for (;;) pair.a = pair.sum(&o); }
C
cat >"$work/signal.s" <<'C'
.text
.globl _start
.type _start, @function
_start: .cfi_startproc
 .cfi_undefined rip
 call handler
 hlt
 .cfi_endproc
.size _start, .-_start
.type restorer, @function
 .cfi_startproc simple
 .cfi_signal_frame
 .cfi_escape 0x0f, 0x04, 0x77, 0xa0, 0x01, 0x06
 .cfi_escape 0x10, 0x10, 0x03, 0x77, 0xa8, 0x01
 .cfi_escape 0x10, 0x06, 0x02, 0x77, 0x78
 nop
restorer: mov $15, %eax
 syscall
 .cfi_endproc
.size restorer, .-restorer
.type handler, @function
handler: .cfi_startproc
 push %rbp
 .cfi_def_cfa_offset 16
 .cfi_offset rbp, -16
 mov %rsp, %rbp
 .cfi_def_cfa_register rbp
 .cfi_remember_state
 call *%rax
 pop %rbp
 .cfi_def_cfa rsp, 8
 ret
 .cfi_restore_state
 call bare
 .cfi_endproc
.size handler, .-handler
.type bare, @function
bare: call *8(%rax)
 jmp handler
.size bare, .-bare
C
base="-Os -nostdlib -static -fno-stack-protector -fcf-protection=none -Wl,-z,noseparate-code -Wl,-z,norelro -Wl,--build-id=sha1"
build() { # name, flags
    local name=$1 source=$2
    shift 2
    gcc $base "$@" -o "$work/$name" "$work/$source"
}
build plain a.c
build frame-pointer a.c -fno-omit-frame-pointer -O0
build dwarf5 a.c -g -gdwarf-5 -gno-column-info
build dwarf4 a.c -g -gdwarf-4 -fdebug-types-section
build packed a.c -g -gz=zlib
build debug-frame a.c -g -fno-asynchronous-unwind-tables
build pie a.c -static-pie
build no-header a.c -Wl,--no-eh-frame-hdr
build cpp a.cc -g1
build signal signal.s -Wl,--eh-frame-hdr
gcc -Os -shared -fPIC -nostdlib -Wl,-z,noseparate-code -Wl,--build-id=sha1 -o "$work/shared" -x c - <<'C'
int far(int); __attribute__((visibility("default"))) int near(int a) { return far(a) + far(a + 1); }
C
cp "$work/plain" "$work/stripped" && strip "$work/stripped"
objcopy --strip-section-headers "$work/plain" "$work/headless" 2>/dev/null || cp "$work/stripped" "$work/headless"
# .gnu_debugdata, as Fedora makes it.
cp "$work/stripped" "$work/minidebug"
objcopy --only-keep-debug "$work/plain" "$work/inner" && xz --check=crc32 -k "$work/inner"
objcopy --add-section .gnu_debugdata="$work/inner.xz" "$work/minidebug"
printf '\377 Go buildinf:\010\002' >"$work/info"
head -c 16 /dev/zero >>"$work/info"
printf '\010go1.24.3\004path' >>"$work/info"
cp "$work/plain" "$work/go-info"
objcopy --add-section .go.buildinfo="$work/info" "$work/go-info"

for name in plain dwarf5 dwarf4 packed debug-frame pie cpp shared stripped minidebug signal; do
    cp "$work/$name" "corpus/names/seed-$name"
done
for name in plain packed headless shared; do cp "$work/$name" "corpus/image/seed-$name"; done
for name in plain headless go-info; do cp "$work/$name" "corpus/program/seed-$name"; done

cat >"$work/seeds.py" <<'PY'
import os, struct, subprocess, sys
work = sys.argv[1]

def write(target, name, data):
    data = data if isinstance(data, bytes) else data.encode()
    open(f"corpus/{target}/seed-{name}", "wb").write(data)

def calls(program):
    """Symbols, and the addresses behind calls in each."""
    text = subprocess.run(["objdump", "-d", f"{work}/{program}"], capture_output=True, text=True, check=True).stdout
    symbols, behind, function, was_call = {}, {}, None, False
    for line in text.splitlines():
        if line.endswith(">:"):
            address, function = line[:-2].split(" <")
            symbols[function] = int(address, 16)
        elif line.startswith("  ") and ":" in line and function:
            address = int(line.split(":")[0], 16)
            if was_call:
                behind.setdefault(was_call, []).append(address)
            was_call = function if "call" in line else None
    return symbols, behind

def unwind(name, program, ip, words, sp=0, bp=0xffff):
    stack = b"".join(struct.pack("<Q", word) for word in words)
    write("unwind", name, struct.pack("<HHHI", len(stack), sp, bp, ip) + stack + open(f"{work}/{program}", "rb").read())

STACK = 0x7ffe00000000
for program in ["plain", "frame-pointer", "no-header", "headless", "debug-frame"]:
    symbols, behind = calls("plain" if program == "headless" else program)
    ret = {name: addresses[0] for name, addresses in behind.items()}
    words = [0x1111, ret.get("middle", 0), 0, STACK + 0x40, ret["outer"], 0, 0, STACK + 0x80, ret["_start"], 0, ret["_start"], 0, 0, 0, 0, 0] * 2
    unwind(program, program, symbols["leaf"], words[1:], 0, 0x10)
symbols, behind = calls("signal")
handler, start = behind["handler"], behind["_start"][0]
unwind("signal", "signal", symbols["bare"], [handler[-1], STACK + 0x28, symbols["restorer"]] + [0] * 13 + [STACK + 0xb0, 0, 0, STACK + 0xd8, symbols["bare"], 0, handler[0], 0, start] + [start] * 6, 0, 8)
unwind("generated", "plain", 0, [STACK + 0x20, 0x700000000010, 0, 0, STACK + 0x40, 0x700000000020, 0, 0, 0, 0], 0, 0)

# Place (24 bits) and value of a change to sound goroutines.
write("goroutines", "length", b"\0\0\0\xff")
write("goroutines", "fields", b"\x98\0\0\0\xa0\x10\0\x05")

write("maps", "program", "55d0c0a00000-55d0c0a21000 r-xp 00002000 fd:01 1234567    /opt/a b/server (deleted)\n7ffd0-7ffd1 rw-p 00000000 00:00 0      [stack]\n7f00000000-7f00001000 r-xp 00000000 00:00 0\n")
write("maps", "odd", b"0-1 ---p 0 00:00 0 \xff\xfe\\012x\nffffffffffffffff-ffffffffffffffff r 0 0 0\n")
hash64 = "a3f1e0b2c4d5968778695a4b3c2d1e0f" * 2
uid = "3f2a6b1c_0d4e_4f5a_8b6c_7d8e9f0a1b2c"
write("cgroup", "systemd", f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/cri-containerd-{hash64}.scope\n")
write("cgroup", "cgroupfs", f"12:cpu,cpuacct:/kubepods/pod{uid.replace('_', '-')}/{hash64}\n1:name=systemd:/docker/{hash64}\n0::/\n")
write("cgroup", "fargate", f"4:memory:/ecs/{hash64[:32]}/{hash64[:32]}-1234567890\n")
write("cgroup", "notation", f"0::/system.slice:docker:{hash64}\n")
write("perf_map", "node", "1000 100 LazyCompile:~outer /a b.js:1\n1020 10 inner\n0x2000 10 old\n1ff8 10 new\n3000 0 none\nbad\n4000 10 cut")
write("perf_map", "ends", "fffffffffffffff0 f f\n0 ffffffffffffffff all\r\n")
for number, name in enumerate(["_ZN3std3sys4sync5mutex5futex5Mutex14lock_contended17h0123456789abcdefE", "_RNvCs1234_7mycrate3foo", "_RINvC1a1bTB4_B4_EE", "_ZNSt6vectorIiSaIiEE9push_backEOi.cold", "_Z1fI1AIiEEvT_S_", "_ZNK4deep4PairIlE3sumEPS1_", "_RNvXs5_NtCsd4VYFwevHkG_8rustc_v05implsINtB5_3FooyENtB5_3Bar3bar", "_GLOBAL__sub_I__Z1fv"]):
    write("demangle", str(number), name)
for name, bytes_ in {"direct": "90e8fbffffff", "register": "41ffd4", "memory": "41ff942400010000", "relative": "ff1510203000"}.items():
    write("call", name, struct.pack("<Q", 0x401000) + bytes.fromhex(bytes_))
PY
python3 "$work/seeds.py" "$work"

# The tables of a program of two functions as Go 1.20 writes them (src/cmd/link/internal/ld/pcln.go, runtime/symtab.go).
cat >"$work/go.s" <<'C'
.text
.globl _start
_start: .fill 0x40, 1, 0x90
other:  .fill 0x40, 1, 0x90
end:
.section .gopclntab, "a"
tab: .long 0xfffffff1
 .byte 0, 0, 1, 8
 .quad 2, 1, _start, names - tab, cu - tab, files - tab, pctab - tab, funcs - tab
names: .asciz "main.main"
 .asciz "runtime.goexit"
cu: .long 0
files: .asciz "/src/main.go"
pctab: .byte 0
sp1: .byte 2, 0x10, 0x80, 0x01, 0x30, 0
fl1: .byte 2, 0x40, 0
ln1: .byte 20, 0x20, 4, 0x20, 0
 .balign 8
funcs: .long 0, f1 - funcs, 0x40, f2 - funcs, 0x80
f1: .long 0, 0, 0, 0, sp1 - pctab, fl1 - pctab, ln1 - pctab, 0, 0, 10
 .byte 0, 0, 0, 0
f2: .long 0x40, 10, 0, 0, sp1 - pctab, fl1 - pctab, ln1 - pctab, 0, 0, 20
 .byte 1, 0, 0, 0
C
build go go.s
cp "$work/go" corpus/pclntab/seed-go
du -sb corpus
