/* Faults below every library: system calls that change files under one folder are counted, traced, and made to fail.
 *
 * A seccomp filter turns each such call into SIGSYS, whoever makes it: libc, SQLite, or Rust code that issues system
 * calls itself and would escape an LD_PRELOAD (safetensors renames that way). The handler decides, does the call
 * through the one instruction the filter lets pass, and appends what happened to a trace. Forked children inherit all
 * of it; a program started by exec would not, so none may be started once the filter is in place. One thread only.
 *
 * Syncs are recorded and not done: whether data is durable is decided by replaying the trace, never by the disk.
 * Files named *-shm hold what SQLite's connections share in memory, not durable state: only a full disk touches them.
 * Nothing here may call libc: a handler runs in the middle of anything.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>

#define EXPORT __attribute__((visibility("default")))
#define EXIT_CRASHED 77
#define MAX_PATH 4096

/* The only system call instruction that the filter lets pass; `faults_after_syscall` is where it returns to. */
long faults_syscall(long number, long a, long b, long c, long d, long e, long f);
extern char faults_after_syscall[];
#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#define NUMBER(context) ((context)->uc_mcontext.gregs[REG_RAX])
#define RESULT(context) ((context)->uc_mcontext.gregs[REG_RAX])
#define ARGUMENTS(context)                                                                                   \
    {                                                                                                        \
        (context)->uc_mcontext.gregs[REG_RDI], (context)->uc_mcontext.gregs[REG_RSI],                        \
            (context)->uc_mcontext.gregs[REG_RDX], (context)->uc_mcontext.gregs[REG_R10],                    \
            (context)->uc_mcontext.gregs[REG_R8], (context)->uc_mcontext.gregs[REG_R9]                       \
    }
__asm__(".text\n.hidden faults_syscall\n.hidden faults_after_syscall\n"
        ".globl faults_syscall\n.type faults_syscall, @function\nfaults_syscall:\n"
        "mov %rdi, %rax\nmov %rsi, %rdi\nmov %rdx, %rsi\nmov %rcx, %rdx\nmov %r8, %r10\nmov %r9, %r8\n"
        "mov 8(%rsp), %r9\nsyscall\n"
        ".globl faults_after_syscall\nfaults_after_syscall:\nret\n");
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#define NUMBER(context) ((context)->uc_mcontext.regs[8])
#define RESULT(context) ((context)->uc_mcontext.regs[0])
#define ARGUMENTS(context)                                                                                   \
    {                                                                                                        \
        (context)->uc_mcontext.regs[0], (context)->uc_mcontext.regs[1], (context)->uc_mcontext.regs[2],      \
            (context)->uc_mcontext.regs[3], (context)->uc_mcontext.regs[4], (context)->uc_mcontext.regs[5]   \
    }
__asm__(".text\n.hidden faults_syscall\n.hidden faults_after_syscall\n"
        ".globl faults_syscall\n.type faults_syscall, %function\nfaults_syscall:\n"
        "mov x8, x0\nmov x0, x1\nmov x1, x2\nmov x2, x3\nmov x3, x4\nmov x4, x5\nmov x5, x6\nsvc #0\n"
        ".globl faults_after_syscall\nfaults_after_syscall:\nret\n");
#else
#error "faults.c knows x86-64 and 64-bit ARM only"
#endif
#define DO(number, ...) DO7(number, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define DO7(number, a, b, c, d, e, f, ...)                                                                   \
    faults_syscall(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* In step with `Mode` in shim.py. */
enum { COUNT, CRASH, TORN, FULL, FULL_ONCE, SHORT, SYNC_ERROR };
/* Which calls a mode counts. SPACE: calls that may need space on the disk. */
enum { ANY = 1, WRITES = 2, SPACE = 4, SYNCS = 8 };
static const int COUNTED[] = {0, ANY, WRITES, SPACE, SPACE, WRITES, SYNCS};

/* In step with `Op` in replay.py. SHARED: a call on shared memory. UNKNOWN: a change that a trace cannot hold. */
enum { MARK, CREATE, MKDIR, WRITE, TRUNCATE, SYNC, SYNC_FAILED, SYNC_ALL, RENAME, UNLINK, RMDIR, LINK, SHARED, UNKNOWN };

struct record {
    uint32_t op, call;
    uint64_t inode;
    int64_t offset, length;
    uint32_t path_bytes, other_bytes;
};

static struct {
    int armed, mode, trace;
    uint32_t calls; /* counted calls so far, whatever the mode */
    uint32_t hits;  /* of those that the mode counts */
    uint32_t nth, fired;
    size_t root_bytes;
    char root[MAX_PATH];
} state;

/* A path under the root. `at` is absolute, `name` relative to the root. */
struct place {
    char at[MAX_PATH + 256];
    const char *name;
    int shared_memory;
};

static size_t length_of(const char *text) {
    size_t length = 0;
    while (text[length]) length++;
    return length;
}

static int ends_with(const char *text, const char *suffix) {
    size_t length = length_of(text), tail = length_of(suffix);
    if (length < tail) return 0;
    for (size_t i = 0; i < tail; i++)
        if (text[length - tail + i] != suffix[i]) return 0;
    return 1;
}

static void crash(void) { DO(SYS_exit_group, EXIT_CRASHED); }

/* What a descriptor stands for, as an absolute path without links; its length, or 0. */
static size_t path_of(int fd, char *to) {
    char link[32] = "/proc/self/fd/", digits[12];
    size_t end = 14, count = 0;
    if (fd < 0) return 0;
    do digits[count++] = (char)('0' + fd % 10);
    while (fd /= 10);
    while (count) link[end++] = digits[--count];
    link[end] = 0;
    long length = DO(SYS_readlinkat, AT_FDCWD, link, to, MAX_PATH - 1);
    if (length <= 0) return 0;
    to[length] = 0;
    return (size_t)length;
}

static int is_under_root(struct place *place, size_t length) {
    if (length < state.root_bytes) return 0;
    for (size_t i = 0; i < state.root_bytes; i++)
        if (place->at[i] != state.root[i]) return 0;
    if (length > state.root_bytes && place->at[state.root_bytes] != '/') return 0;
    place->name = place->at + state.root_bytes + (length > state.root_bytes);
    place->shared_memory = ends_with(place->at, "-shm");
    return 1;
}

static int place_of_fd(int fd, struct place *place) {
    size_t length = path_of(fd, place->at);
    return length && is_under_root(place, length);
}

/* Where a path leads, by the folder it is in: the path itself may not exist. */
static int place_of_path(int folder, const char *path, struct place *place) {
    char parent[MAX_PATH];
    size_t length = length_of(path), start;
    while (length > 1 && path[length - 1] == '/') length--;
    if (!length || length >= MAX_PATH) return 0;
    for (start = length; start && path[start - 1] != '/';) start--;
    for (size_t i = 0; i < start; i++) parent[i] = path[i];
    if (!start) parent[0] = '.';
    parent[start ? start : 1] = 0;
    int fd = (int)DO(SYS_openat, folder, parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return 0;
    size_t end = path_of(fd, place->at);
    DO(SYS_close, fd);
    if (!end || end + length - start + 2 > sizeof place->at) return 0;
    if (end > 1) place->at[end++] = '/';
    for (size_t i = 0; i < length - start; i++) place->at[end++] = path[start + i];
    place->at[end] = 0;
    return is_under_root(place, end);
}

static int stat_of(const struct place *place, struct stat *found) {
    return !DO(SYS_newfstatat, AT_FDCWD, place->at, found, AT_SYMLINK_NOFOLLOW);
}

static void put(const void *data, size_t bytes) {
    const char *from = data;
    while (bytes) {
        long written = DO(SYS_write, state.trace, from, bytes);
        if (written <= 0) DO(SYS_exit_group, EXIT_CRASHED + 1);
        from += written, bytes -= (size_t)written;
    }
}

/* Append to the trace; the bytes of a WRITE follow, put there by the caller. */
static void note(int op, uint64_t inode, int64_t offset, int64_t length, const char *path, const char *other) {
    if (state.trace < 0) return;
    struct record record = {(uint32_t)op, state.calls, inode, offset, length, 0, 0};
    if (path) record.path_bytes = (uint32_t)length_of(path);
    if (other) record.other_bytes = (uint32_t)length_of(other);
    put(&record, sizeof record);
    put(path, record.path_bytes);
    put(other, record.other_bytes);
}

/* Count a call about to be made. Dies here in CRASH mode; otherwise true if this call is to have the mode's fault. */
static int meets_fault(int kinds, int shared_memory) {
    if (!shared_memory) state.calls++;
    if (!(kinds & COUNTED[state.mode]) || (shared_memory && COUNTED[state.mode] != SPACE)) return 0;
    state.hits++;
    if (state.mode == FULL ? state.hits < state.nth : state.hits != state.nth) return 0;
    if (state.mode == CRASH) crash();
    if (!state.fired) state.fired = state.calls ? state.calls : 1;
    return 1;
}

static long open_file(long number, int folder, const char *path, int flags, long mode) {
    struct place place;
    struct stat found;
    if (!place_of_path(folder, path, &place)) return DO(SYS_openat, folder, path, flags, mode);
    if ((flags & O_TMPFILE) == O_TMPFILE) note(UNKNOWN, 0, number, 0, place.name, 0);
    int exists = stat_of(&place, &found);
    int creates = !exists && (flags & O_CREAT), truncates = exists && (flags & O_TRUNC) && !(flags & O_EXCL);
    if (exists && S_ISLNK(found.st_mode)) note(UNKNOWN, 0, number, 0, place.name, 0);
    if ((creates || truncates) && meets_fault(ANY | (creates ? SPACE : 0), place.shared_memory)) return -ENOSPC;
    long fd = DO(SYS_openat, folder, path, flags, mode);
    if (creates && place.shared_memory) note(SHARED, 0, 0, 0, place.name, 0);
    if (fd >= 0 && !place.shared_memory && !DO(SYS_fstat, fd, &found)) {
        if (creates) note(CREATE, found.st_ino, 0, 0, place.name, 0);
        if (truncates) note(TRUNCATE, found.st_ino, 0, 0, place.name, 0);
    }
    return fd;
}

/* Where the next byte goes that is written without an offset. */
static int64_t position_of(int fd, const struct stat *file) {
    if (DO(SYS_fcntl, fd, F_GETFL) & O_APPEND) return file->st_size;
    return DO(SYS_lseek, fd, 0, SEEK_CUR);
}

static long write_file(int fd, const struct iovec *pieces, long count, int64_t offset, int positioned) {
    struct place place;
    struct stat file;
    struct iovec some[64];
    int64_t total = 0;
    int under = place_of_fd(fd, &place) && !DO(SYS_fstat, fd, &file) && S_ISREG(file.st_mode);
    if (count > 64) count = 64; /* a short write: the caller goes on */
    for (long i = 0; i < count; i++) some[i] = pieces[i], total += (int64_t)pieces[i].iov_len;
    int fault = under && total && meets_fault(ANY | WRITES | SPACE, place.shared_memory);
    if (fault && (state.mode == FULL || state.mode == FULL_ONCE)) return -ENOSPC;
    if (fault && total > 1) { /* TORN or SHORT: half of it */
        int64_t left = total / 2;
        for (long i = 0; i < count; i++) {
            if ((int64_t)some[i].iov_len > left) some[i].iov_len = (size_t)left;
            left -= (int64_t)some[i].iov_len;
        }
    }
    if (under && place.shared_memory) note(SHARED, 0, 0, 0, place.name, 0);
    if (under && !positioned) offset = position_of(fd, &file);
    long done = positioned ? DO(SYS_pwritev, fd, some, count, offset, 0) : DO(SYS_writev, fd, some, count);
    if (under && !place.shared_memory && done > 0 && state.trace >= 0) {
        note(WRITE, file.st_ino, offset, done, place.name, 0);
        int64_t left = done;
        for (long i = 0; i < count && left; i++) {
            int64_t bytes = (int64_t)some[i].iov_len < left ? (int64_t)some[i].iov_len : left;
            put(some[i].iov_base, (size_t)bytes);
            left -= bytes;
        }
    }
    if (fault && state.mode == TORN) crash();
    return done;
}

/* copy_file_range, sendfile, splice: what arrived is read back, for the kernel moved it. */
static long copy_into(int fd, const int64_t *to, long number, const long *a) {
    struct place place;
    struct stat file;
    if (!place_of_fd(fd, &place) || DO(SYS_fstat, fd, &file) || !S_ISREG(file.st_mode))
        return DO(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    int fault = meets_fault(ANY | WRITES | SPACE, place.shared_memory);
    if (fault && (state.mode == FULL || state.mode == FULL_ONCE)) return -ENOSPC;
    int64_t offset = to ? *to : position_of(fd, &file);
    long b[6] = {a[0], a[1], a[2], a[3], a[4], a[5]}, *bytes = &b[number == SYS_sendfile ? 3 : 4];
    if (fault && *bytes > 1) *bytes /= 2; /* TORN or SHORT */
    long done = DO(number, b[0], b[1], b[2], b[3], b[4], b[5]);
    if (done > 0 && !place.shared_memory && state.trace >= 0) {
        int source = (int)DO(SYS_openat, AT_FDCWD, place.at, O_RDONLY | O_CLOEXEC);
        char piece[4096];
        note(source < 0 ? UNKNOWN : WRITE, file.st_ino, offset, done, place.name, 0);
        for (int64_t at = 0; source >= 0 && at < done;) {
            long wanted = done - at < 4096 ? (long)(done - at) : 4096;
            long got = DO(SYS_pread64, source, piece, wanted, offset + at);
            if (got <= 0) DO(SYS_exit_group, EXIT_CRASHED + 1);
            put(piece, (size_t)got);
            at += got;
        }
        if (source >= 0) DO(SYS_close, source);
    }
    if (fault && state.mode == TORN) crash();
    return done;
}

static long truncate_file(int fd, int64_t size) {
    struct place place;
    struct stat file;
    if (!place_of_fd(fd, &place) || DO(SYS_fstat, fd, &file)) return DO(SYS_ftruncate, fd, size);
    meets_fault(ANY, place.shared_memory);
    long result = DO(SYS_ftruncate, fd, size);
    if (!result && !place.shared_memory) note(TRUNCATE, file.st_ino, 0, size, place.name, 0);
    return result;
}

static long truncate_path(const char *path, int64_t size) {
    int fd = (int)DO(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return fd;
    long result = truncate_file(fd, size);
    DO(SYS_close, fd);
    return result;
}

static long allocate(int fd, int how, int64_t offset, int64_t length) {
    struct place place;
    struct stat file;
    if (!place_of_fd(fd, &place)) return DO(SYS_fallocate, fd, how, offset, length);
    if (meets_fault(ANY | SPACE, place.shared_memory)) return -ENOSPC;
    long result = DO(SYS_fallocate, fd, how, offset, length);
    if (!result && !place.shared_memory && !DO(SYS_fstat, fd, &file))
        note(how & ~FALLOC_FL_KEEP_SIZE ? UNKNOWN : TRUNCATE, file.st_ino, 0, file.st_size, place.name, 0);
    return result;
}

static long sync_file(int fd, long number) {
    struct place place;
    struct stat file;
    if (!place_of_fd(fd, &place) || DO(SYS_fstat, fd, &file)) return DO(number, fd);
    if (place.shared_memory) return 0;
    int fails = meets_fault(ANY | SYNCS, 0);
    note(fails ? SYNC_FAILED : SYNC, file.st_ino, 0, 0, place.name, 0);
    return fails ? -EIO : 0;
}

static long rename_path(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    struct place source, target;
    struct stat found;
    int from_here = place_of_path(from_folder, from, &source), to_here = place_of_path(to_folder, to, &target);
    int changes = from_here && to_here && stat_of(&source, &found) && !source.shared_memory;
    if (from_here != to_here || flags & ~RENAME_NOREPLACE)
        note(UNKNOWN, 0, SYS_renameat2, 0, from_here ? source.name : target.name, 0);
    if (changes && meets_fault(ANY | SPACE, 0)) return -ENOSPC;
    long result = flags ? DO(SYS_renameat2, from_folder, from, to_folder, to, flags)
                        : DO(SYS_renameat, from_folder, from, to_folder, to);
    if (changes && !result) note(RENAME, found.st_ino, 0, 0, source.name, target.name);
    return result;
}

static long link_path(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    struct place source, target;
    struct stat found;
    int changes = place_of_path(to_folder, to, &target) && !stat_of(&target, &found);
    if (changes && !place_of_path(from_folder, from, &source)) note(UNKNOWN, 0, SYS_linkat, 0, target.name, 0);
    if (changes && meets_fault(ANY | SPACE, 0)) return -ENOSPC;
    long result = DO(SYS_linkat, from_folder, from, to_folder, to, flags);
    if (changes && !result && stat_of(&target, &found)) note(LINK, found.st_ino, 0, 0, target.name, 0);
    return result;
}

static long unlink_path(int folder, const char *path, int flags) {
    struct place place;
    struct stat found;
    int changes = place_of_path(folder, path, &place) && stat_of(&place, &found) && !place.shared_memory;
    if (changes) meets_fault(ANY, 0);
    long result = DO(SYS_unlinkat, folder, path, flags);
    if (changes && !result) note(flags & AT_REMOVEDIR ? RMDIR : UNLINK, found.st_ino, 0, 0, place.name, 0);
    return result;
}

static long make_folder(int folder, const char *path, long mode) {
    struct place place;
    struct stat found;
    int changes = place_of_path(folder, path, &place) && !stat_of(&place, &found);
    if (changes && meets_fault(ANY | SPACE, 0)) return -ENOSPC;
    long result = DO(SYS_mkdirat, folder, path, mode);
    if (changes && !result && stat_of(&place, &found)) note(MKDIR, found.st_ino, 0, 0, place.name, 0);
    return result;
}

/* A change that is let through, and said to be missing from the trace. */
static long untraceable(const struct place *place, long number, const long *a) {
    if (place) note(UNKNOWN, 0, number, 0, place->name, 0);
    return DO(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static long perform(long number, const long *a) {
    struct place place;
    switch (number) {
#ifdef SYS_open
    case SYS_open: return open_file(number, AT_FDCWD, (const char *)a[0], (int)a[1], a[2]);
    case SYS_creat: return open_file(number, AT_FDCWD, (const char *)a[0], O_CREAT | O_WRONLY | O_TRUNC, a[1]);
    case SYS_rename: return rename_path(AT_FDCWD, (const char *)a[0], AT_FDCWD, (const char *)a[1], 0);
    case SYS_link: return link_path(AT_FDCWD, (const char *)a[0], AT_FDCWD, (const char *)a[1], 0);
    case SYS_unlink: return unlink_path(AT_FDCWD, (const char *)a[0], 0);
    case SYS_rmdir: return unlink_path(AT_FDCWD, (const char *)a[0], AT_REMOVEDIR);
    case SYS_mkdir: return make_folder(AT_FDCWD, (const char *)a[0], a[1]);
    case SYS_symlink: return untraceable(place_of_path(AT_FDCWD, (const char *)a[1], &place) ? &place : 0, number, a);
    case SYS_mknod: return untraceable(place_of_path(AT_FDCWD, (const char *)a[0], &place) ? &place : 0, number, a);
#endif
    case SYS_openat: return open_file(number, (int)a[0], (const char *)a[1], (int)a[2], a[3]);
    case SYS_renameat: return rename_path((int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3], 0);
    case SYS_renameat2:
        return rename_path((int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3], (unsigned)a[4]);
    case SYS_linkat: return link_path((int)a[0], (const char *)a[1], (int)a[2], (const char *)a[3], (int)a[4]);
    case SYS_unlinkat: return unlink_path((int)a[0], (const char *)a[1], (int)a[2]);
    case SYS_mkdirat: return make_folder((int)a[0], (const char *)a[1], a[2]);
    case SYS_symlinkat: return untraceable(place_of_path((int)a[1], (const char *)a[2], &place) ? &place : 0, number, a);
    case SYS_mknodat: return untraceable(place_of_path((int)a[0], (const char *)a[1], &place) ? &place : 0, number, a);
    case SYS_write:
    case SYS_pwrite64: {
        struct iovec piece = {(void *)a[1], (size_t)a[2]};
        return write_file((int)a[0], &piece, 1, a[3], number == SYS_pwrite64);
    }
    case SYS_writev: return write_file((int)a[0], (const struct iovec *)a[1], a[2], 0, 0);
    case SYS_pwritev: return write_file((int)a[0], (const struct iovec *)a[1], a[2], a[3], 1);
    case SYS_pwritev2: return write_file((int)a[0], (const struct iovec *)a[1], a[2], a[3], a[3] != -1);
    case SYS_sendfile: return copy_into((int)a[0], 0, number, a);
    case SYS_splice:
    case SYS_copy_file_range: return copy_into((int)a[2], (const int64_t *)a[3], number, a);
    case SYS_ftruncate: return truncate_file((int)a[0], a[1]);
    case SYS_truncate: return truncate_path((const char *)a[0], a[1]);
    case SYS_fallocate: return allocate((int)a[0], (int)a[1], a[2], a[3]);
    case SYS_fsync:
    case SYS_fdatasync: return sync_file((int)a[0], number);
    case SYS_sync:
    case SYS_syncfs: note(SYNC_ALL, 0, 0, 0, 0, 0); return 0;
    case SYS_mmap: /* the filter sends only mappings that are shared and writable */
        return untraceable(place_of_fd((int)a[4], &place) && !place.shared_memory ? &place : 0, number, a);
    case SYS_ioctl: return -EOPNOTSUPP; /* clone a file: callers copy instead */
    default: return -ENOSYS;            /* io_uring and openat2: callers use what is counted instead */
    }
}

static void on_trapped(int signal, siginfo_t *info, void *raw) {
    (void)signal, (void)info;
    ucontext_t *context = raw;
    const long a[6] = ARGUMENTS(context);
    long number = NUMBER(context);
    if (!state.armed && number != SYS_ioctl && number != SYS_io_uring_setup && number != SYS_openat2)
        RESULT(context) = DO(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    else
        RESULT(context) = perform(number, a);
}

#define FIELD(name) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, name))
#define LOW_HALF(i) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[i]))
#define PASS BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define CATCH BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP)
#define EQUAL(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), yes, no)
#define HAS(bits, yes, no) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (uint32_t)(bits), yes, no)
#define CATCH_CALL(number) EQUAL(number, 0, 1), CATCH
#define CATCH_OPEN(number, flags) EQUAL(number, 0, 4), LOW_HALF(flags), HAS(O_CREAT | O_TRUNC | O_TMPFILE, 0, 1), CATCH, PASS

/* Catch the calls of this process and its children from now on. 0, or the errno of what the kernel refused. */
EXPORT int faults_install(void) {
    uint64_t after = (uint64_t)(uintptr_t)faults_after_syscall;
    struct sock_filter filter[] = {
        FIELD(arch), EQUAL(ARCHITECTURE, 1, 0), PASS,
        FIELD(instruction_pointer), EQUAL(after & 0xffffffff, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
        EQUAL(after >> 32, 0, 1), PASS,
        FIELD(nr),
#ifdef SYS_open
        CATCH_CALL(SYS_creat), CATCH_CALL(SYS_rename), CATCH_CALL(SYS_link), CATCH_CALL(SYS_unlink),
        CATCH_CALL(SYS_rmdir), CATCH_CALL(SYS_mkdir), CATCH_CALL(SYS_symlink), CATCH_CALL(SYS_mknod),
        CATCH_OPEN(SYS_open, 1),
#endif
        CATCH_CALL(SYS_renameat), CATCH_CALL(SYS_renameat2), CATCH_CALL(SYS_linkat), CATCH_CALL(SYS_unlinkat),
        CATCH_CALL(SYS_mkdirat), CATCH_CALL(SYS_symlinkat), CATCH_CALL(SYS_mknodat), CATCH_CALL(SYS_write),
        CATCH_CALL(SYS_pwrite64), CATCH_CALL(SYS_writev), CATCH_CALL(SYS_pwritev), CATCH_CALL(SYS_pwritev2),
        CATCH_CALL(SYS_sendfile), CATCH_CALL(SYS_splice), CATCH_CALL(SYS_copy_file_range), CATCH_CALL(SYS_ftruncate),
        CATCH_CALL(SYS_truncate), CATCH_CALL(SYS_fallocate), CATCH_CALL(SYS_fsync), CATCH_CALL(SYS_fdatasync),
        CATCH_CALL(SYS_sync), CATCH_CALL(SYS_syncfs), CATCH_CALL(SYS_io_uring_setup), CATCH_CALL(SYS_openat2),
        CATCH_OPEN(SYS_openat, 2),
        EQUAL(SYS_ioctl, 0, 4), LOW_HALF(1), EQUAL(FICLONE, 1, 0), EQUAL(FICLONERANGE, 0, 1), CATCH,
        FIELD(nr), EQUAL(SYS_mmap, 0, 5), LOW_HALF(2), HAS(PROT_WRITE, 0, 3), LOW_HALF(3), HAS(MAP_SHARED, 0, 1), CATCH,
        PASS,
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    struct sigaction action = {.sa_sigaction = on_trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGSYS, &action, 0)) return errno;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return errno;
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return errno;
    return 0;
}

/* Count calls under `root` (absolute, without links) from now on, and give the `nth` that the mode counts its fault.
 * What happens is appended to the descriptor `trace`, a file outside the root; none if it is negative. */
EXPORT void faults_arm(const char *root, int mode, unsigned nth, int trace) {
    state.root_bytes = length_of(root);
    for (size_t i = 0; i <= state.root_bytes; i++) state.root[i] = root[i];
    state.mode = mode, state.nth = nth, state.trace = trace;
    state.calls = state.hits = state.fired = 0;
    state.armed = 1;
}

EXPORT void faults_disarm(void) { state.armed = 0; }

/* No more faults; counting and tracing go on. */
EXPORT void faults_relent(void) { state.mode = COUNT; }

EXPORT unsigned faults_count(void) { return state.calls; }

EXPORT int faults_fired(void) { return (int)state.fired; }

/* Say in the trace that what was done so far has been acknowledged. */
EXPORT void faults_mark(void) {
    if (state.armed) note(MARK, 0, 0, 0, 0, 0);
}
