// LIIF_UNROLL before a loop with a small constant bound unrolls it fully; LIIF_INLINE before a function makes it part
// of its callers; LIIF_PREFETCH asks for a line of memory, LIIF_PREFETCH_L2 for one in the second-level cache.
#pragma once

#if defined(__clang__)
#define LIIF_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define LIIF_UNROLL _Pragma("GCC unroll 16")
#else
#define LIIF_UNROLL
#endif

#if defined(__GNUC__)
#define LIIF_INLINE inline __attribute__((always_inline))
#define LIIF_PREFETCH(address) __builtin_prefetch(address)
#define LIIF_PREFETCH_L2(address) __builtin_prefetch(address, 0, 2)
#else
#define LIIF_INLINE inline
#define LIIF_PREFETCH(address)
#define LIIF_PREFETCH_L2(address)
#endif
