/* Uninterruptible sleep.
 *
 *   dstate         thread "vforker" called vfork() and its child neither execs nor exits
 *   dstate fuse    thread "holder" makes a directory in a file system (FUSE) that never answers, and has the directory's
 *                  lock; thread "waiter" wants to make another one there
 *
 * Truth: "child" is the vfork child.
 */
#include "victim.h"
#include <linux/fuse.h>
#include <sys/mount.h>

static char where[64];

/* The file system: a root directory, nothing in it, and no answer to mkdir(). */
static void serve(int fd) {
    static char in[1 << 17];
    for (;;) {
        ssize_t n = read(fd, in, sizeof in);
        if (n < 0 && errno == EINTR) continue;
        if (n < (ssize_t)sizeof(struct fuse_in_header)) _exit(0);
        const struct fuse_in_header *ask = (const void *)in;
        struct {
            struct fuse_out_header head;
            union { struct fuse_init_out init; struct fuse_attr_out attr; } body;
        } out;
        memset(&out, 0, sizeof out);
        size_t len = sizeof out.head;
        out.head.unique = ask->unique;
        switch (ask->opcode) {
        case FUSE_INIT:
            out.body.init.major = FUSE_KERNEL_VERSION;
            out.body.init.minor = 31;
            out.body.init.max_write = 4096;
            len += sizeof out.body.init;
            break;
        case FUSE_GETATTR:
            out.body.attr.attr_valid = 3600;
            out.body.attr.attr.ino = 1;
            out.body.attr.attr.mode = S_IFDIR | 0777;
            out.body.attr.attr.nlink = 2;
            len += sizeof out.body.attr;
            break;
        case FUSE_MKDIR:
        case FUSE_FORGET:
        case FUSE_BATCH_FORGET:
        case FUSE_INTERRUPT:
            continue;
        case FUSE_LOOKUP:
            out.head.error = -ENOENT;
            break;
        default:
            out.head.error = -ENOSYS;
        }
        out.head.len = (uint32_t)len;
        if (write(fd, &out, len) < 0 && errno != ENOENT) die("write to /dev/fuse");
    }
}

static void *make_directory(void *seat) {
    struct seat *mine = seat;
    char path[96];
    take_seat(mine);
    snprintf(path, sizeof path, "%s/%s", where, mine->name);
    mkdir(path, 0777);
    return NULL;
}

static void fuse(void) {
    char options[96];
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0) die("/dev/fuse");
    CHECK(unshare(CLONE_NEWNS));
    CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    /* Over /tmp of this namespace alone: nothing is left behind. */
    CHECK(mount("victim", "/tmp", "tmpfs", 0, NULL));
    snprintf(where, sizeof where, "/tmp/fs");
    CHECK(mkdir(where, 0777));
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
    CHECK(mount("victim", where, "fuse.victim", 0, options));
    /* The connection must end with the server: nobody else may have it open, or the threads here could never exit. */
    pid_t server = fork();
    if (server < 0) die("fork");
    if (server == 0) {
        die_with_parent();
        serve(fd);
    }
    close(fd);
    struct seat *holder = new_seat("holder", "mkdir", SYS_mkdir);
    start_thread(make_directory, holder);
    await_seat(holder);
    struct seat *waiter = new_seat("waiter", "mkdir", SYS_mkdir);
    waiter->state = "D";
    waiter->owner = holder;
    start_thread(make_directory, waiter);
    print_truth(getpid(), "fuse", ",\"server\":%d", server);
    stay();
}

static struct seat *parent_seat, *child_seat;

static void *vforker(void *arg) {
    take_seat(parent_seat);
    pid_t pid = vfork();
    if (pid < 0) die("vfork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        child_seat->pid = getpid();
        child_seat->tid = self_tid();
        for (;;) pause();
    }
    return arg;
}

int main(int argc, char **argv) {
    victim_init();
    if (argc == 2 && is_mode(argv[1], "fuse")) fuse();
    parent_seat = new_seat("vforker", "vfork", SYS_vfork);
    parent_seat->state = "D";
    child_seat = new_seat("vforker", "pause", SYS_pause);
    start_thread(vforker, NULL);
    for (int i = 0; i < seat_count; i++) await_seat(&seats[i]);
    print_truth(getpid(), "vfork", ",\"child\":%d", child_seat->pid);
    stay();
}
