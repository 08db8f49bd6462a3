/* Stands between a process and its disk: loaded by LD_PRELOAD, it records what the process does to the
 * files below one directory, or makes the Nth of these operations fail.
 *
 * DISK_ROOT   the directory; DISK_NAME the one entry of it that counts, with all below, and the root itself
 * DISK_LOG    where to record; each entry is appended with one write, so its length is a position in time
 * DISK_FAIL   N:ERRNO:HOW  the Nth operation that can fail so does: "once", "on" (and all after it), or
 *             "short" (half of a write is done), or "hang" (a sync of a file named db never comes back), or
 *             "stall" (a write of it).
 *             With ENOSPC only operations count that may need space. Of the reads of a descriptor, and of
 *             its writes, the first 16 count and then every 64th: copies are made of thousands.
 * DISK_TOLD   the file to which a failed operation is written, by name and path
 *
 * Invariant: operations other than syncs are made and recorded under one lock, so that the order of the
 * log is the order in which they happened. A sync has two entries: what was recorded before the first
 * is durable from the second on. What happens on no descriptor seen here (a mapping that is shared
 * and writable, a call that is not listed) is recorded as unknown or not at all; whoever reads the
 * log compares its end with the real files.
 *
 * Calls go to the kernel directly. 64-bit Linux only. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN = 1, WRITE, TRUNCATE, SYNC_BEGIN, SYNC_END, RENAME, UNLINK, MKDIR, RMDIR, LINK, UNKNOWN, START };
enum { CREATE = 1, EMPTY = 2, DATA_ONLY = 1 };
enum effect { READS, CHANGES, GROWS };

/* As the reader of the log has it: little-endian, without gaps. */
struct entry {
    uint32_t kind, flags;
    uint64_t handle, offset, length;
    uint32_t path_bytes, other_bytes;
};

struct file { uint64_t handle; char *path; unsigned reads, writes; };

#define MAX_FDS 65536
static struct file files[MAX_FDS];
static uint64_t handles;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], name[NAME_MAX + 1];
static size_t root_bytes, name_bytes;
static int log_fd = -1, told_fd = -1, fail_errno;
static long fail_at, counted;
static enum { ONCE, ON, SHORT, HANG, STALL } fail_how;

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("DISK_ROOT");
    if (!text || !getenv("DISK_NAME")) return;
    snprintf(root, sizeof root, "%s", text);
    snprintf(name, sizeof name, "%s", getenv("DISK_NAME"));
    name_bytes = strlen(name);
    if ((text = getenv("DISK_LOG"))) log_fd = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if ((text = getenv("DISK_TOLD"))) told_fd = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    char how[8] = "";
    if ((text = getenv("DISK_FAIL")) && sscanf(text, "%ld:%d:%7s", &fail_at, &fail_errno, how) == 3)
        fail_how = !strcmp(how, "on") ? ON : !strcmp(how, "short") ? SHORT : !strcmp(how, "hang") ? HANG
                 : !strcmp(how, "stall") ? STALL : ONCE;
    /* From here on paths count. */
    root_bytes = strlen(root);
}

/* The part of `path` that the log has, or null if it does not count. The root itself is "". */
static const char *counts(const char *path) {
    if (!root_bytes || !path || strncmp(path, root, root_bytes)) return NULL;
    path += root_bytes;
    if (!*path || !strcmp(path, "/")) return "";
    if (*path++ != '/' || strncmp(path, name, name_bytes)) return NULL;
    return !path[name_bytes] || path[name_bytes] == '/' ? path : NULL;
}

static struct file *file_of(int fd) {
    return fd >= 0 && fd < MAX_FDS && files[fd].path ? &files[fd] : NULL;
}

/* A path that may be relative to a folder that was opened here, made absolute in `buffer`. */
static const char *absolute(int at, const char *given, char *buffer) {
    struct file *folder = given && given[0] != '/' ? file_of(at) : NULL;
    if (!folder) return given;
    int bytes = snprintf(buffer, PATH_MAX, "%s/%s/%s", root, folder->path, given);
    return bytes < PATH_MAX ? buffer : given;
}

static void record(enum kind kind, uint32_t flags, uint64_t handle, uint64_t offset, const char *path,
                   const char *other, const void *data, uint64_t length) {
    if (log_fd < 0) return;
    struct entry entry = {kind, flags, handle, offset, length, path ? strlen(path) : 0, other ? strlen(other) : 0};
    struct iovec parts[4] = {{&entry, sizeof entry}, {(void *)path, entry.path_bytes},
                             {(void *)other, entry.other_bytes}, {(void *)data, data ? length : 0}};
    size_t whole = sizeof entry + entry.path_bytes + entry.other_bytes + parts[3].iov_len;
    if (syscall(SYS_writev, log_fd, parts, 4) != (long)whole) {
        /* A recording with a gap proves nothing. */
        static const char words[] = "the recording cannot be written\n";
        syscall(SYS_write, 2, words, sizeof words - 1);
        _exit(86);
    }
}

static int is_counted(unsigned *times) { return ++*times <= 16 || *times % 64 == 0; }

/* Whether this operation fails; half of its length is done first if it is a write that comes short. */
static int fails_if(int is_counted, enum effect effect, const char *what, const char *path) {
    if (!fail_at || (fail_errno == ENOSPC && effect != GROWS)) return 0;
    if (fail_how == SHORT && strcmp(what, "write")) return 0;
    size_t length = strlen(path);
    if (fail_how >= HANG && (strcmp(what, fail_how == HANG ? "sync" : "write") || length < 3 || strcmp(path + length - 3, "/db"))) return 0;
    counted += is_counted;
    if (!(is_counted && counted == fail_at) && !(fail_how == ON && counted >= fail_at)) return 0;
    if (told_fd >= 0) {
        char line[PATH_MAX + 64];
        int bytes = snprintf(line, sizeof line, "%s %s\n", what, path);
        syscall(SYS_write, told_fd, line, bytes);
    }
    errno = fail_errno;
    return 1;
}

static int fails(enum effect effect, const char *what, const char *path) { return fails_if(1, effect, what, path); }

static int opened(int at, const char *given, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    given = absolute(at, given, buffer);
    const char *path = counts(given);
    if (!path || (flags & O_TMPFILE) == O_TMPFILE) return syscall(SYS_openat, at, given, flags, mode);
    pthread_mutex_lock(&lock);
    int fd = -1;
    int changes = (flags & O_CREAT) && syscall(SYS_faccessat, AT_FDCWD, given, F_OK, 0) != 0;
    if (!fails(changes ? GROWS : READS, changes ? "create" : "open", path)) {
        fd = syscall(SYS_openat, at, given, flags, mode);
        if (fd >= 0 && fd < MAX_FDS) {
            free(files[fd].path);
            files[fd] = (struct file){.handle = ++handles, .path = strdup(path)};
            uint32_t how = (changes ? CREATE : 0) | (flags & O_TRUNC ? EMPTY : 0);
            record(OPEN, how, handles, getpid(), path, NULL, NULL, 0);
        }
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE(flags, last) ({ mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; \
    va_start(list, last); mode = va_arg(list, mode_t); va_end(list); } mode; })

int open(const char *path, int flags, ...) { return opened(AT_FDCWD, path, flags, MODE(flags, flags)); }
int open64(const char *path, int flags, ...) { return opened(AT_FDCWD, path, flags, MODE(flags, flags)); }
int openat(int at, const char *path, int flags, ...) { return opened(at, path, flags, MODE(flags, flags)); }
int openat64(int at, const char *path, int flags, ...) { return opened(at, path, flags, MODE(flags, flags)); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static void forget(int fd) {
    if (!file_of(fd)) return;
    pthread_mutex_lock(&lock);
    free(files[fd].path);
    files[fd].path = NULL;
    pthread_mutex_unlock(&lock);
}

int close(int fd) {
    forget(fd);
    return syscall(SYS_close, fd);
}

/* Closes its descriptor without a call of close that is seen here. */
int closedir(DIR *dir) {
    static int (*real)(DIR *);
    if (!real) real = (int (*)(DIR *))dlsym(RTLD_NEXT, "closedir");
    forget(dirfd(dir));
    return real(dir);
}

DIR *opendir(const char *given) {
    static DIR *(*real)(const char *);
    if (!real) real = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
    const char *path = counts(given);
    if (path) {
        pthread_mutex_lock(&lock);
        int failed = fails(READS, "list", path);
        pthread_mutex_unlock(&lock);
        if (failed) return NULL;
    }
    return real(given);
}

/* Writes at `offset`, or where the descriptor stands if it is negative. */
static ssize_t written(int fd, const void *data, size_t length, off_t offset) {
    struct file *file = file_of(fd);
    if (!file) return offset < 0 ? syscall(SYS_write, fd, data, length) : syscall(SYS_pwrite64, fd, data, length, offset);
    pthread_mutex_lock(&lock);
    ssize_t done = -1;
    int failed = fails_if(is_counted(&file->writes), GROWS, "write", file->path);
    if (!failed || fail_how == SHORT) {
        if (failed) length = (length + 1) / 2;
        off_t at = offset;
        if (offset < 0) {
            struct stat about;
            int end = (syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND) && !fstat(fd, &about);
            at = end ? about.st_size : syscall(SYS_lseek, fd, 0, SEEK_CUR);
        }
        done = offset < 0 ? syscall(SYS_write, fd, data, length) : syscall(SYS_pwrite64, fd, data, length, offset);
        if (done > 0) record(WRITE, 0, file->handle, at, NULL, NULL, data, done);
    }
    pthread_mutex_unlock(&lock);
    while (failed && fail_how == STALL) pause();
    return done;
}

ssize_t write(int fd, const void *data, size_t length) { return written(fd, data, length, -1); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return written(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return written(fd, data, length, offset); }

/* As if only the first part had been written, which every caller must expect. */
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!file_of(fd)) return syscall(SYS_writev, fd, parts, count);
    while (count > 1 && !parts->iov_len) parts++, count--;
    return count > 0 ? written(fd, parts->iov_base, parts->iov_len, -1) : 0;
}

static int read_fails(int fd) {
    struct file *file = fail_at ? file_of(fd) : NULL;
    if (!file) return 0;
    pthread_mutex_lock(&lock);
    int failed = fails_if(is_counted(&file->reads), READS, "read", file->path);
    pthread_mutex_unlock(&lock);
    return failed;
}

ssize_t read(int fd, void *data, size_t length) { return read_fails(fd) ? -1 : syscall(SYS_read, fd, data, length); }
ssize_t pread(int fd, void *data, size_t length, off_t offset) { return read_fails(fd) ? -1 : syscall(SYS_pread64, fd, data, length, offset); }
ssize_t pread64(int fd, void *data, size_t length, off64_t offset) { return read_fails(fd) ? -1 : syscall(SYS_pread64, fd, data, length, offset); }

static int truncated(int fd, off_t length) {
    struct file *file = file_of(fd);
    if (!file) return syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&lock);
    int result = fails(CHANGES, "truncate", file->path) ? -1 : syscall(SYS_ftruncate, fd, length);
    if (!result) record(TRUNCATE, 0, file->handle, length, NULL, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int fd, off_t length) { return truncated(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncated(fd, length); }

static int synced(int fd, int data_only) {
    long call = data_only ? SYS_fdatasync : SYS_fsync;
    struct file *file = file_of(fd);
    if (!file) return syscall(call, fd);
    pthread_mutex_lock(&lock);
    uint64_t handle = file->handle;
    int failed = fails(GROWS, "sync", file->path);
    if (!failed) record(SYNC_BEGIN, data_only, handle, 0, NULL, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    while (failed && fail_how == HANG) pause();
    if (failed) return -1;
    int result = syscall(call, fd);
    if (result) return result;
    pthread_mutex_lock(&lock);
    record(SYNC_END, data_only, handle, 0, NULL, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd) { return synced(fd, 0); }
int fdatasync(int fd) { return synced(fd, 1); }

/* Makes nothing durable, so it is not recorded; but it fails as a write does. */
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags) {
    struct file *file = file_of(fd);
    if (file) {
        pthread_mutex_lock(&lock);
        int failed = fails(GROWS, "flush", file->path);
        pthread_mutex_unlock(&lock);
        if (failed) return -1;
    }
    return syscall(SYS_sync_file_range, fd, offset, length, flags);
}

/* A call on one or two paths. */
static int named(enum kind kind, const char *what, enum effect effect, const char *given, const char *second, mode_t mode) {
    const char *path = counts(given), *other = second ? counts(second) : NULL;
    pthread_mutex_lock(&lock);
    int result = path && fails(effect, what, path) ? -1
        : kind == RENAME ? syscall(SYS_renameat2, AT_FDCWD, given, AT_FDCWD, second, 0)
        : kind == LINK ? syscall(SYS_linkat, AT_FDCWD, given, AT_FDCWD, second, 0)
        : kind == MKDIR ? syscall(SYS_mkdirat, AT_FDCWD, given, mode)
        : syscall(SYS_unlinkat, AT_FDCWD, given, kind == RMDIR ? AT_REMOVEDIR : 0);
    if (!result && (path || other)) {
        /* What comes from outside or goes there is not understood. */
        int whole = path && (!second || other);
        record(whole ? kind : UNKNOWN, 0, 0, 0, whole ? path : what, other, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to) { return named(RENAME, "rename", GROWS, from, to, 0); }
int link(const char *from, const char *to) { return named(LINK, "link", GROWS, from, to, 0); }
int unlink(const char *path) { return named(UNLINK, "remove", CHANGES, path, NULL, 0); }
int rmdir(const char *path) { return named(RMDIR, "remove", CHANGES, path, NULL, 0); }
int unlinkat(int at, const char *path, int flags) {
    char buffer[PATH_MAX];
    path = absolute(at, path, buffer);
    if (!counts(path)) return syscall(SYS_unlinkat, at, path, flags);
    return named(flags & AT_REMOVEDIR ? RMDIR : UNLINK, "remove", CHANGES, path, NULL, 0);
}
int mkdir(const char *path, mode_t mode) { return named(MKDIR, "create", GROWS, path, NULL, mode); }

/* What changes files and is not understood. */
static void unknown(int fd, const char *what) {
    if (!file_of(fd)) return;
    pthread_mutex_lock(&lock);
    record(UNKNOWN, 0, 0, 0, what, NULL, NULL, 0);
    pthread_mutex_unlock(&lock);
}

int fallocate(int fd, int mode, off_t offset, off_t length) { unknown(fd, "fallocate"); return syscall(SYS_fallocate, fd, mode, offset, length); }
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }
/* Not to be had here: the caller reads and writes then. */
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) { if (file_of(out)) { errno = ENOSYS; return -1; } return syscall(SYS_copy_file_range, in, from, out, to, length, flags); }
ssize_t sendfile64(int out, int in, off64_t *from, size_t length) { if (file_of(out)) { errno = ENOSYS; return -1; } return syscall(SYS_sendfile, out, in, from, length); }
ssize_t sendfile(int out, int in, off_t *from, size_t length) { return sendfile64(out, in, from, length); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { unknown(fd, "pwritev"); return syscall(SYS_pwritev, fd, parts, count, offset, 0); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) { return pwritev(fd, parts, count, offset); }
void *mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset) { if ((flags & MAP_SHARED) && (protection & PROT_WRITE)) unknown(fd, "mmap"); return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset); }
void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t offset) { return mmap(at, length, protection, flags, fd, offset); }
