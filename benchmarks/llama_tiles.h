// Included before every file of llama.cpp when it is compiled for the comparison.
//
// GCC 12's own intrinsics do not say that they read memory: the loads of a tile and of the tiles'
// configuration may move before the stores they read, and those stores may be dropped as dead.
// llama.cpp's configuration, a local variable, is dropped, and its first product on a processor
// with AMX dies of SIGSEGV. These are the same instructions with their memory said.

#pragma once

#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)

#include <immintrin.h>

#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg (%0)" ::"r"(config) : "memory")

// In two steps, because the number of a tile may itself be a macro.
#define JANUS_TILE_LOAD(tile, base, stride)                               \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile                   \
                     ::"r"((const void *)(base)), "r"((long)(stride))     \
                     : "memory")
#undef _tile_loadd
#define _tile_loadd(tile, base, stride) JANUS_TILE_LOAD(tile, base, stride)

#endif
