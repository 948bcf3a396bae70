// LIIF_UNROLL before a loop with a small constant bound unrolls it fully; LIIF_INLINE before a function makes it part
// of its callers; LIIF_PREFETCH asks for a line of memory. For the micro-kernel's files only.
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
#else
#define LIIF_INLINE inline
#define LIIF_PREFETCH(address)
#endif
