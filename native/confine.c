/* What a worker gives up for good: capabilities, new privileges, and the system calls that no worker needs. User and
 * group are changed by the caller in between, since that is what the last capabilities are for. */
#define _GNU_SOURCE
#include "sluice.h"
#include <dirent.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- capabilities, of every thread ---- */

/* The kernel keeps them for each thread, and the runtime has several before anybody can ask. As glibc does for setuid: a
 * signal, in whose handler each thread gives up its own. Threads of libraries block what they can (the allocator's does), but not
 * what a fault of theirs would raise; SIGSYS is the one of those that nobody else uses. */
#define SIGNAL_GIVE_UP SIGSYS
#define GIVE_UP_MS_MAX 1000
#define THREADS_MAX 256
#define CAPABILITIES_MAX 63

static _Atomic int answered;
static void (*give_up)(void);

/* What an exec could gain: the capabilities that there are now stay, for changing the user. */
static void give_up_future(void) {
  for (int cap = 0; cap <= CAPABILITIES_MAX; cap++) prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
}

static void give_up_all(void) {
  struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  struct __user_cap_data_struct none[2];
  memset(none, 0, sizeof none);
  syscall(SYS_capset, &head, none);
}

static void on_give_up(int signal) {
  (void)signal;
  int error = errno;
  give_up();
  errno = error;
  atomic_fetch_add(&answered, 1);
}

static int other_threads(pid_t *tids) {
  DIR *tasks = opendir("/proc/self/task");
  if (!tasks) return -errno;
  int count = 0;
  pid_t self = (pid_t)syscall(SYS_gettid);
  for (struct dirent *entry; count < THREADS_MAX && (entry = readdir(tasks));) {
    pid_t tid = atoi(entry->d_name);
    if (tid > 0 && tid != self) tids[count++] = tid;
  }
  closedir(tasks);
  return count;
}

/* Returns how many threads did not answer in time, or -errno. */
static int in_every_thread(void (*what)(void)) {
  struct sigaction action = {.sa_handler = on_give_up, .sa_flags = SA_RESTART}, before;
  sigfillset(&action.sa_mask);
  if (sigaction(SIGNAL_GIVE_UP, &action, &before) < 0) return -errno;
  pid_t tids[THREADS_MAX];
  int count = other_threads(tids), sent = 0;
  give_up = what;
  atomic_store(&answered, 0);
  for (int i = 0; i < count; i++) sent += syscall(SYS_tgkill, getpid(), tids[i], SIGNAL_GIVE_UP) == 0;
  what();
  struct timespec millisecond = {.tv_nsec = 1000000};
  for (int ms = 0; ms < GIVE_UP_MS_MAX && atomic_load(&answered) < sent; ms++) nanosleep(&millisecond, NULL);
  if (count < 0) return count;
  int silent = sent - atomic_load(&answered);
  /* One that answers late must not die of the signal. */
  if (silent == 0) sigaction(SIGNAL_GIVE_UP, &before, NULL);
  return silent;
}

int sluice_drop_bounding(void) {
  int left = in_every_thread(give_up_future);
  if (prctl(PR_CAPBSET_READ, CAP_SETPCAP, 0, 0, 0) == 1) return -EPERM;
  return left;
}

int sluice_drop_capabilities(void) {
  int left = in_every_thread(give_up_all);
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -errno;
  /* Nobody of the same user may look into its memory, and no core dump has it. */
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return -errno;
  return left;
}

/* ---- system calls ---- */

#if defined(__x86_64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#endif

/* Newer ones than the headers that we are compiled with know are "not there": no one can say what they do. Programs have a way
 * without them, since older kernels lack them as well. 462 is mseal (Linux 6.10); numbers above 424 are the same everywhere. */
#define NEWEST_CALL 462

/* Refused whole. A list of what is refused and not of what is needed: the runtime's needs are written nowhere and change with
 * its version, these stay. The constants are numbers where the headers of Debian 12 may be older than the kernel. */
static const int refused[] = {
  /* starting programs */
  SYS_execve, SYS_execveat,
#ifdef SYS_fork
  SYS_fork, SYS_vfork,
#endif
  /* other processes */
  SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_kcmp, SYS_tkill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo,
  424 /* pidfd_send_signal */, 438 /* pidfd_getfd */, 440 /* process_madvise */,
  /* who one is */
  SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid, SYS_setfsuid, SYS_setfsgid,
  SYS_setgroups, SYS_capset,
  /* namespaces and mounts */
  SYS_unshare, SYS_setns, SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, 428 /* open_tree */, 429 /* move_mount */,
  430 /* fsopen */, 431 /* fsconfig */, 432 /* fsmount */, 433 /* fspick */, 442 /* mount_setattr */,
  SYS_open_by_handle_at, SYS_name_to_handle_at, SYS_fanotify_init,
  /* the kernel itself */
  SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load,
#ifdef SYS_kexec_file_load
  SYS_kexec_file_load,
#endif
  SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_syslog, SYS_add_key, SYS_request_key, SYS_keyctl,
  SYS_lookup_dcookie, SYS_quotactl, 443 /* quotactl_fd */, SYS_nfsservctl,
  /* its rings do file and network calls that no filter sees */
  425 /* io_uring_setup */, 426 /* io_uring_enter */, 427 /* io_uring_register */,
  /* the machine */
  SYS_reboot, SYS_swapon, SYS_swapoff, SYS_acct, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_adjtimex,
  SYS_sethostname, SYS_setdomainname, SYS_vhangup, SYS_personality,
#ifdef __x86_64__
  SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_uselib, SYS__sysctl, SYS_create_module, SYS_get_kernel_syms,
  SYS_query_module, SYS_ustat, SYS_sysfs,
#endif
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define NAMESPACES                                                                                                     \
  (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
/* The low half of an argument: all of a descriptor, a family, a process id. Both machines are little-endian. */
#define LOAD_ARGUMENT(i) LOAD(args[i])
#define REFUSE(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
/* What follows is skipped unless the loaded value is this one. */
#define UNLESS(value, skipped) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 0, skipped)

int sluice_refuse_calls(void) {
#ifndef OUR_ARCH
  return -ENOSYS;
#else
  uint32_t self = (uint32_t)getpid();
  struct sock_filter head[] = {
    /* A call in the way of another machine (32 bits) has other numbers; with bit 30 set it is x32's. */
    LOAD(arch),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0),
    REFUSE(EPERM),
    LOAD(nr),
    BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, NEWEST_CALL, 0, 1),
    REFUSE(ENOSYS),
    /* Its flags are in memory, where no filter looks: without it, glibc takes clone. */
    UNLESS(435 /* clone3 */, 1),
    REFUSE(ENOSYS),
    /* Threads, and nothing else. */
    UNLESS(SYS_clone, 5),
    LOAD_ARGUMENT(0),
    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NAMESPACES, 2, 0),
    BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1),
    ALLOW,
    REFUSE(EPERM),
    /* Signals to itself only: other workers are the same user. */
    UNLESS(SYS_kill, 4),
    LOAD_ARGUMENT(0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, self, 0, 1),
    ALLOW,
    REFUSE(EPERM),
    UNLESS(SYS_tgkill, 4),
    LOAD_ARGUMENT(0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, self, 0, 1),
    ALLOW,
    REFUSE(EPERM),
    /* unix, IPv4, IPv6, and of netlink the routing family, with which resolvers ask for the addresses of the machine. */
    UNLESS(SYS_socket, 9),
    LOAD_ARGUMENT(0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 5, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET, 4, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET6, 3, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_NETLINK, 0, 3),
    LOAD_ARGUMENT(2),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0 /* NETLINK_ROUTE */, 0, 1),
    ALLOW,
    REFUSE(EAFNOSUPPORT),
    /* Typing for the operator whose terminal is our standard error. */
    UNLESS(SYS_ioctl, 5),
    LOAD_ARGUMENT(1),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x5412 /* TIOCSTI */, 2, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x541C /* TIOCLINUX */, 1, 0),
    ALLOW,
    REFUSE(EPERM),
  };
  struct sock_filter program[COUNT(head) + 2 * COUNT(refused) + 1];
  memcpy(program, head, sizeof head);
  size_t length = COUNT(head);
  for (size_t i = 0; i < COUNT(refused); i++) {
    program[length++] = (struct sock_filter)UNLESS(refused[i], 1);
    program[length++] = (struct sock_filter)REFUSE(EPERM);
  }
  program[length++] = (struct sock_filter)ALLOW;
  struct sock_fprog whole = {.len = (unsigned short)length, .filter = program};
  /* For all threads that there are, or for none: it returns the id of the one that stood in the way. */
  long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &whole);
  return result < 0 ? -errno : result > 0 ? -EBUSY : 0;
#endif
}
