/* A 32-bit process without a C library: gcc -m32 -nostdlib -static, so that no 32-bit packages are needed.
 *
 * It waits in poll(NULL, 0, -1), which is system call 168 of the i386 table; 168 of the x86-64 table is swapoff.
 * Idle, not hung. Its truth is one line with its pid; the main thread is in that poll when it is true.
 */
static int call3(int nr, int a, int b, int c) {
    int r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory");
    return r;
}

#define NR_EXIT 1
#define NR_WRITE 4
#define NR_GETPID 20
#define NR_POLL 168
#define NR_PRCTL 172

struct pollfd32 { int fd; short events, revents; };

__attribute__((used, noreturn, force_align_arg_pointer)) static void victim(void) {
    static char line[96] = "{\"ready\":true,\"shape\":\"tiny32\",\"threads\":[],\"pid\":";
    int n = 0, pid, digits = 0;
    char reversed[12];
    call3(NR_PRCTL, 1 /* PR_SET_PDEATHSIG */, 9, 0);
    while (line[n]) n++;
    pid = call3(NR_GETPID, 0, 0, 0);
    for (; pid; pid /= 10) reversed[digits++] = (char)('0' + pid % 10);
    while (digits) line[n++] = reversed[--digits];
    line[n++] = '}';
    line[n++] = '\n';
    call3(NR_WRITE, 1, (int)line, n);
    /* Until stdin hangs up, which POLLHUP reports without being asked. */
    struct pollfd32 p = {0, 0, 0};
    call3(NR_POLL, (int)&p, 1, -1);
    call3(NR_EXIT, 0, 0, 0);
    __builtin_unreachable();
}

__asm__(".globl _start\n_start:\n\tand $-16, %esp\n\tcall victim\n");
