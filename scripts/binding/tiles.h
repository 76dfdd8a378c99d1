/* For building llama-cpp-python with GCC on an Intel CPU that has AMX (docs/speed.md).
 *
 * llama.cpp describes its tiles in a structure on the stack. GCC's _tile_loadconfig tells the
 * optimiser of 8 of its 64 bytes, so the other stores are removed, and the first batch of several
 * tokens ends the process (llama.cpp pull request 26954). Here the whole structure is named.
 */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg %X0" ::"m"(*(const char(*)[64])(config)))
/* capt_local/llama/devices.py looks for this text: without it AMX is not used. */
__attribute__((used)) static const char capt_local_tiles[] = "capt-local: whole tile configuration";
#endif
