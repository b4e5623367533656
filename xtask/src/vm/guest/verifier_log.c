/* verifier_log PROGRAM ARGUMENT…: runs it, and makes each BPF_PROG_LOAD that asks for no log ask for the verifier's
 * statistics. What the verifier says is printed, a line `= …` for each load, into the output of the program.
 *
 * The log is written below the caller's stack pointer, beyond what a signal handler would take: the caller has nothing
 * there while it is inside of the call. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BPF_PROG_LOAD = 5, LOG_STATS = 4, LOG_SIZE = 16384, BELOW = 32768, LOG_AT = 24 };

struct log_request { uint32_t level, size; uint64_t buffer; };

static long move(pid_t pid, uint64_t there, void *here, size_t len, int write) {
    struct iovec local = {here, len}, remote = {(void *)there, len};
    return write ? process_vm_writev(pid, &local, 1, &remote, 1, 0) : process_vm_readv(pid, &local, 1, &remote, 1, 0);
}

static void say(pid_t pid, uint64_t buffer, long result) {
    static char log[LOG_SIZE];
    if (move(pid, buffer, log, sizeof log - 1, 0) <= 0) return;
    /* Since 7.2 a line `processed N` of its own comes before `processed N insns (limit …) …`. */
    char *insns = strstr(log, " insns (limit"), *counts = insns;
    while (counts && counts > log && counts[-1] != '\n') counts--;
    if (counts) printf("= %.*s\n", (int)strcspn(counts, "\n"), counts);
    else printf("= nothing: %s\n", strerror(result < 0 ? (int)-result : 0));
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: verifier_log PROGRAM ARGUMENT…\n"), 2;
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        execvp(argv[1], argv + 1);
        perror(argv[1]);
        _exit(127);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) return perror("verifier_log"), 2;
    ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    int inside = 0, signal = 0;
    uint64_t buffer = 0;
    for (;;) {
        if (ptrace(PTRACE_SYSCALL, child, 0, signal) || waitpid(child, &status, 0) != child) return perror("verifier_log"), 2;
        signal = 0;
        if (WIFEXITED(status)) return WEXITSTATUS(status);
        if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
        if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
            signal = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
            continue;
        }
        struct user_regs_struct regs;
        ptrace(PTRACE_GETREGS, child, 0, &regs);
        inside = !inside;
        if (regs.orig_rax != SYS_bpf || regs.rdi != BPF_PROG_LOAD) continue;
        if (inside) {
            struct log_request request;
            static char zeroes[LOG_SIZE];
            buffer = 0;
            if (move(child, regs.rsi + LOG_AT, &request, sizeof request, 0) != sizeof request || request.size) continue;
            request = (struct log_request){LOG_STATS, LOG_SIZE, regs.rsp - BELOW};
            if (move(child, request.buffer, zeroes, LOG_SIZE, 1) != LOG_SIZE) continue;
            if (move(child, regs.rsi + LOG_AT, &request, sizeof request, 1) == sizeof request) buffer = request.buffer;
        } else if (buffer) {
            say(child, buffer, (long)regs.rax);
            buffer = 0;
        }
    }
}
