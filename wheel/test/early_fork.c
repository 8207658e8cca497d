/* A library to be preloaded: its handlers of fork() are there before those of
   the extension, and take an arena each while they run. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>

#define ARENA ((size_t)1 << 20)

typedef struct {
    void *ctx;
    void *(*alloc)(void *ctx, size_t size);
    void (*free)(void *ctx, void *ptr, size_t size);
} allocator;

/* What the handlers have taken: before the fork, and after it. */
void *early_fork_taken[2];

static void
take(int i)
{
    void (*get)(allocator *) = (void (*)(allocator *))dlsym(
        RTLD_DEFAULT, "PyObject_GetArenaAllocator");
    allocator arenas;
    if (get != NULL) {
        get(&arenas);
        early_fork_taken[i] = arenas.alloc(arenas.ctx, ARENA);
        if (early_fork_taken[i] != NULL) {
            memset(early_fork_taken[i], 1, ARENA);
        }
    }
}

static void before_fork(void) { take(0); }
static void after_fork(void) { take(1); }

__attribute__((constructor))
static void
at_load(void)
{
    (void)pthread_atfork(before_fork, after_fork, after_fork);
}
