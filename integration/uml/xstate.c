// For User-Mode Linux on processors with AMX: it keeps the first 2.7 KB of a process's extended registers, and the host
// takes the whole of them or nothing. What it leaves out is filled in with what the process has, which is what it means.
// Loaded by `run` (LD_PRELOAD) where the processor has AMX.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

typedef long (*call)(enum __ptrace_request, pid_t, void *, void *);

long ptrace(enum __ptrace_request request, ...) {
  static call next;
  // The guest's kernel has one processor, and its stacks are small.
  static char whole[1 << 16] __attribute__((aligned(64)));
  va_list rest;
  va_start(rest, request);
  pid_t pid = va_arg(rest, pid_t);
  void *address = va_arg(rest, void *), *data = va_arg(rest, void *);
  va_end(rest);
  if (!next) next = (call)dlsym(RTLD_NEXT, "ptrace");
  struct iovec all = {whole, sizeof whole}, *given = data;
  if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE &&
      next(PTRACE_GETREGSET, pid, address, &all) == 0 && all.iov_len > given->iov_len) {
    memcpy(whole, given->iov_base, given->iov_len);
    data = &all;
  }
  return next(request, pid, address, data);
}
