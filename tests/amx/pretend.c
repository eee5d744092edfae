/* Preloaded into a program whose CPUID instructions were replaced by UD2 (pretend.py): a processor with AMX.
 *
 * CPUID says so, Linux permits it, and its instructions are emulated. AMX_COUNTS=1 tells at the end how many
 * there were. It is set up before anything else (-z initfirst): libraries ask for the processor when they are
 * loaded. */
#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "emulate.h"

/* Intel SDM, volume 2, CPUID: leaf 7 tells the instructions, 0x1d the tiles, 0x1e the product's unit. */
static void answer(ucontext_t *u) {
    enum { LAST = 0x1e, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, TILES = 8, TILE = 1024, ROW = 64, ROWS = 16 };
    greg_t *g = u->uc_mcontext.gregs;
    const unsigned leaf = (unsigned)g[REG_RAX], sub = (unsigned)g[REG_RCX];
    unsigned a, b, c, d;
    __cpuid_count(leaf, sub, a, b, c, d);
    if (leaf == 0 && a < LAST) a = LAST;
    if (leaf == 7 && sub == 0) d |= AMX_BF16 | AMX_TILE;
    if (leaf == 0x1d) a = b = c = d = 0;
    if (leaf == 0x1d && sub == 0) a = 1; /* the last palette */
    if (leaf == 0x1d && sub == 1) a = TILES * TILE | TILE << 16, b = ROW | TILES << 16, c = ROWS;
    if (leaf == 0x1e) a = c = d = 0, b = sub ? 0 : ROWS | ROW << 8;
    g[REG_RAX] = a, g[REG_RBX] = b, g[REG_RCX] = c, g[REG_RDX] = d;
    g[REG_RIP] += 2;
}

static void on_illegal(int number, siginfo_t *info, void *context) {
    static const uint8_t ud2[] = {0x0f, 0x0b};
    ucontext_t *u = context;
    (void)info;
    if (!memcmp((const void *)(uintptr_t)u->uc_mcontext.gregs[REG_RIP], ud2, sizeof ud2))
        answer(u);
    else if (!amx_emulate(u))
        signal(number, SIG_DFL); /* and again, for good */
}

/* glibc's, but for the permission to use tiles. */
long syscall(long number, ...) {
    enum { GET_PERMISSION = 0x1022, REQUEST_PERMISSION = 0x1023, TILES = 3 << 17 };
    long x[6];
    va_list args;
    va_start(args, number);
    for (int i = 0; i < 6; i++) x[i] = va_arg(args, long);
    va_end(args);
    if (number == SYS_arch_prctl && x[0] == GET_PERMISSION) {
        *(unsigned long *)x[1] = TILES;
        return 0;
    }
    if (number == SYS_arch_prctl && x[0] == REQUEST_PERMISSION) return 0;
    register long r10 __asm__("r10") = x[3], r8 __asm__("r8") = x[4], r9 __asm__("r9") = x[5];
    long ret;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(number), "D"(x[0]), "S"(x[1]), "d"(x[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (ret >= 0 || ret < -4095) return ret;
    errno = (int)-ret;
    return -1;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGILL, &action, NULL)) abort();
}

amx_counts amx_pretended(void) {
    return amx_counted();
}

__attribute__((destructor)) static void end(void) {
    const amx_counts n = amx_counted();
    if (getenv("AMX_COUNTS"))
        fprintf(stderr, "amx: %lu products, %lu loads and stores, %lu others\n", (unsigned long)n.products,
                (unsigned long)n.moves, (unsigned long)n.others);
}
