/* Lets writes below a folder fail from some number on: preloaded, see failing.py.

   FAIL_BELOW: the folder. FAIL_AFTER: calls that still succeed. FAIL_WITH: errno of the others. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int calls;

static int below(const char *path) {
  const char *folder = getenv("FAIL_BELOW");
  return folder && strncmp(path, folder, strlen(folder)) == 0;
}

/* Whether a call that concerns a path is to fail; errno is set then. */
static int fails(const char *path) {
  if (!below(path) || atomic_fetch_add(&calls, 1) < atoi(getenv("FAIL_AFTER"))) return 0;
  errno = atoi(getenv("FAIL_WITH"));
  return 1;
}

static int fails_fd(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(path);
}

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  return fails_fd(fd) ? -1 : NEXT(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  return fails_fd(fd) ? -1 : NEXT(writev)(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  return fails_fd(fd) ? -1 : NEXT(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  return fails_fd(fd) ? -1 : NEXT(pwrite64)(fd, data, size, at);
}
int fsync(int fd) { return fails_fd(fd) ? -1 : NEXT(fsync)(fd); }
int mkdir(const char *path, mode_t mode) { return fails(path) ? -1 : NEXT(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return fails(to) ? -1 : NEXT(rename)(from, to); }
