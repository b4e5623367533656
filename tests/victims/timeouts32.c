/* A 32-bit process without a C library (gcc -m32 -nostdlib -static) that sleeps in one call with one limit. Idle, not hung.
 *
 *   timeouts32 MODE [after-line]       with after-line, only once something comes on stdin
 *
 * poll ppoll ppoll64 select select-old pselect pselect64 epoll epoll2 futex futex64
 *                   a limit of 3600.5 s, as wide as that call has it
 * poll-neg5         poll(2) with -5
 * ppoll-year        ppoll(2) with a year
 * recv recv-old     recv(2) of a socket without a limit: called as such, and through socketcall(2)
 * connect-old connect-tcp-old
 *                   connect(2) through socketcall(2) at a full backlog of its own, of a unix and of a TCP socket
 *
 * Its truth is one line with its pid; soon after it sleeps.
 */
typedef unsigned int u32;

#define NR_EXIT 1
#define NR_READ 3
#define NR_WRITE 4
#define NR_GETPID 20
#define NR_PIPE 42
#define NR_SELECT_OLD 82
#define NR_SOCKETCALL 102
#define NR_SELECT 142
#define NR_POLL 168
#define NR_PRCTL 172
#define NR_FUTEX 240
#define NR_EPOLL_CTL 255
#define NR_EPOLL_WAIT 256
#define NR_PSELECT6 308
#define NR_PPOLL 309
#define NR_EPOLL_CREATE1 329
#define NR_SOCKET 359
#define NR_SOCKETPAIR 360
#define NR_BIND 361
#define NR_LISTEN 363
#define NR_RECVFROM 371
#define NR_PSELECT6_TIME64 413
#define NR_PPOLL_TIME64 414
#define NR_FUTEX_TIME64 422
#define NR_EPOLL_PWAIT2 441

static int call6(u32 nr, u32 a, u32 b, u32 c, u32 d, u32 e, u32 f) {
    u32 words[7] = {nr, a, b, c, d, e, f}, *from = words;
    int result;
    /* ebp is the last argument, and the compiler's. */
    __asm__ volatile("push %%ebp\n\t"
                     "mov 24(%%esi), %%ebp\n\t"
                     "mov 20(%%esi), %%edi\n\t"
                     "mov 12(%%esi), %%edx\n\t"
                     "mov 8(%%esi), %%ecx\n\t"
                     "mov 4(%%esi), %%ebx\n\t"
                     "mov (%%esi), %%eax\n\t"
                     "mov 16(%%esi), %%esi\n\t"
                     "int $0x80\n\t"
                     "pop %%ebp"
                     : "=a"(result), "+S"(from)
                     :
                     : "ebx", "ecx", "edx", "edi", "memory");
    return result;
}
#define CALL(nr, a, b, c, d, e) call6(nr, (u32)(a), (u32)(b), (u32)(c), (u32)(d), (u32)(e), 0)

static int is(const char *one, const char *other) {
    while (*one && *one == *other) one++, other++;
    return *one == *other;
}

static void say(const char *mode) {
    static char line[128] = "{\"ready\":true,\"shape\":\"timeouts32\",\"threads\":[],\"mode\":\"";
    int n = 0, digits = 0;
    char reversed[12];
    while (line[n]) n++;
    for (; *mode && n < 90; mode++) line[n++] = *mode;
    for (const char *next = "\",\"pid\":"; *next; next++) line[n++] = *next;
    for (int pid = CALL(NR_GETPID, 0, 0, 0, 0, 0); pid; pid /= 10) reversed[digits++] = (char)('0' + pid % 10);
    while (digits) line[n++] = reversed[--digits];
    line[n++] = '}';
    line[n++] = '\n';
    CALL(NR_WRITE, 1, line, n, 0, 0);
}

static struct { int fd; short events, revents; } polled;
static u32 set[32], limit32[2] = {3600, 500000000}, micros[2] = {3600, 500000}, year[2] = {31536000, 0};
/* Little end first: two numbers of 64 bits. */
static u32 limit64[4] = {3600, 0, 500000000, 0};
static u32 word = 1, event[3], arguments[6];
/* Of two bytes: the kernel chooses the name. */
static struct { unsigned short family; char path[16]; } address = {1, ""};
/* 127.0.0.1, and the port is the kernel's choice. */
static struct { unsigned short family, port; u32 ip, zero[2]; } inet = {2, 0, 0x0100007f, {0, 0}};

/* Connections until the backlog is full; the last one sleeps. */
static void connect_until_full(u32 domain, void *where, u32 bound) {
    int listener = CALL(NR_SOCKET, domain, 1, 0, 0, 0);
    CALL(NR_BIND, listener, where, bound, 0, 0);
    CALL(NR_LISTEN, listener, 0, 0, 0, 0);
    static u32 size = sizeof address;
    arguments[0] = (u32)listener, arguments[1] = (u32)where, arguments[2] = (u32)&size;
    CALL(NR_SOCKETCALL, 6 /* getsockname */, arguments, 0, 0, 0);
    for (;;) {
        arguments[0] = (u32)CALL(NR_SOCKET, domain, 1, 0, 0, 0);
        arguments[1] = (u32)where, arguments[2] = size;
        CALL(NR_SOCKETCALL, 3 /* connect */, arguments, 0, 0, 0);
    }
}

static void sleep_in(const char *mode) {
    int ends[2], ep = CALL(NR_EPOLL_CREATE1, 0, 0, 0, 0, 0);
    CALL(NR_PIPE, ends, 0, 0, 0, 0);
    polled.fd = ends[0], polled.events = 1;
    set[0] = 1u << ends[0];
    event[0] = 1;
    CALL(NR_EPOLL_CTL, ep, 1, ends[0], event, 0);
    int count = ends[0] + 1;
    if (is(mode, "poll")) CALL(NR_POLL, &polled, 1, 3600500, 0, 0);
    else if (is(mode, "poll-neg5")) CALL(NR_POLL, &polled, 1, -5, 0, 0);
    else if (is(mode, "ppoll")) CALL(NR_PPOLL, &polled, 1, limit32, 0, 8);
    else if (is(mode, "ppoll-year")) CALL(NR_PPOLL, &polled, 1, year, 0, 8);
    else if (is(mode, "ppoll64")) CALL(NR_PPOLL_TIME64, &polled, 1, limit64, 0, 8);
    else if (is(mode, "select")) CALL(NR_SELECT, count, set, 0, 0, micros);
    else if (is(mode, "pselect")) CALL(NR_PSELECT6, count, set, 0, 0, limit32);
    else if (is(mode, "pselect64")) CALL(NR_PSELECT6_TIME64, count, set, 0, 0, limit64);
    else if (is(mode, "epoll")) CALL(NR_EPOLL_WAIT, ep, event, 1, 3600500, 0);
    else if (is(mode, "epoll2")) CALL(NR_EPOLL_PWAIT2, ep, event, 1, limit64, 0);
    else if (is(mode, "futex")) CALL(NR_FUTEX, &word, 0x80, 1, limit32, 0);
    else if (is(mode, "futex64")) CALL(NR_FUTEX_TIME64, &word, 0x80, 1, limit64, 0);
    else if (is(mode, "select-old")) {
        u32 all[5] = {(u32)count, (u32)set, 0, 0, (u32)micros};
        CALL(NR_SELECT_OLD, all, 0, 0, 0, all);
    } else if (is(mode, "recv") || is(mode, "recv-old")) {
        CALL(NR_SOCKETPAIR, 1, 1, 0, ends, 0);
        arguments[0] = (u32)ends[0], arguments[1] = (u32)set, arguments[2] = sizeof set;
        if (is(mode, "recv")) CALL(NR_RECVFROM, ends[0], set, sizeof set, 0, 0);
        else CALL(NR_SOCKETCALL, 10 /* recv */, arguments, 0, 0, 0);
    } else if (is(mode, "connect-old")) connect_until_full(1, &address, 2);
    else if (is(mode, "connect-tcp-old")) connect_until_full(2, &inet, sizeof inet);
}

__attribute__((used, noreturn)) static void victim(const u32 *stack) {
    /* argc, then argv. */
    const char *mode = stack[0] > 1 ? (const char *)stack[2] : "";
    CALL(NR_PRCTL, 1 /* PR_SET_PDEATHSIG */, 9, 0, 0, 0);
    char byte;
    if (stack[0] > 2 && is((const char *)stack[3], "after-line")) CALL(NR_READ, 0, &byte, 1, 0, 0);
    say(mode);
    sleep_in(mode);
    for (;;) CALL(NR_EXIT, 3, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmov %esp, %eax\n\tand $-16, %esp\n\tsub $12, %esp\n\tpush %eax\n\tcall victim\n");
