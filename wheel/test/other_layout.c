/* The extension for an interpreter whose structures are not as they are
   declared in stand_in.h: that of arenas or of other allocators, by OTHER, has
   a word more than the real one or a word less, by WORDS. */

#define PyObject_GetArenaAllocator  other_get_arena_allocator
#define PyMem_GetAllocator          other_get_allocator
#include "../src/module.c"
#undef PyObject_GetArenaAllocator
#undef PyMem_GetAllocator

extern void PyObject_GetArenaAllocator(wheel_arena_allocator *allocator);
extern void PyMem_GetAllocator(int domain, wheel_allocator *allocator);

static void
other_fill(void *structure, const void *real, size_t size, const char *name)
{
    const char *other = getenv("OTHER");
    if (other != NULL && strcmp(other, name) == 0) {
        size += (size_t)(atoi(getenv("WORDS")) * (int)sizeof(void *));
    }
    memcpy(structure, real, size);
}

void
other_get_arena_allocator(void *structure)
{
    wheel_arena_allocator real[2] = {{0}};
    PyObject_GetArenaAllocator(real);
    other_fill(structure, real, sizeof(*real), "arenas");
}

void
other_get_allocator(int domain, void *structure)
{
    wheel_allocator real[2] = {{0}};
    PyMem_GetAllocator(domain, real);
    other_fill(structure, real, sizeof(*real), "allocators");
}
