/* The largest product of every int8 row with the columns of a matrix, by the AMX units of x86 CPUs: multiplied, compared
   and scaled in one pass, where a library writes all products to memory and reads them again. `memspan.ops.amx` calls it.

   Compiled at installation where there is a compiler; nothing depends on it. It knows nothing of Python. */

#include <stdint.h>
#include <string.h>

#define INTERFACE 1 /* counted up with every change of what a function takes, here and in amx.py */

#if defined(_WIN32)
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC
#endif

#if defined(__linux__) && defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AMX __attribute__((target("amx-tile,amx-int8,avx512f")))

enum {
    SIDE = 16,       /* rows of a tile, and columns of a tile of sums */
    DEPTH = 64,      /* bytes of a row of a tile */
    ROWS = 2 * SIDE, /* multiplied together, with as many columns where there are */
    MOST_WIDTH = 4096,
};

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

/* INTERFACE where this CPU has the units and the system lets this process use them, else 0. */
PUBLIC int memspan_amx_ready(void) {
    unsigned a, b, c, d;
    const unsigned avx512f = 1u << 16, amx_tile = 1u << 24, amx_int8 = 1u << 25;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & avx512f) || !(d & amx_tile) || !(d & amx_int8)) return 0;
    const long request_permission = 0x1023, tile_data = 18; /* of arch_prctl */
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? INTERFACE : 0;
}

/* The largest sum of each of ROWS rows with the columns of one question. */
AMX static void largest_of_rows(const int8_t *rows, int64_t width, const int8_t *columns, int64_t tiles, float *out) {
    int32_t sums[4][SIDE][SIDE] __attribute__((aligned(64)));
    __m512i largest[ROWS];
    for (int i = 0; i < ROWS; i++) largest[i] = _mm512_set1_epi32(INT32_MIN);
    for (int64_t tile = 0; tile < tiles; tile += 2) {
        const int pair = tile + 1 < tiles; /* else one tile of columns is left */
        const int8_t *left = columns + tile * SIDE * width, *right = left + SIDE * width;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < width; k += DEPTH) {
            _tile_loadd(4, rows + k, width);
            _tile_loadd(5, rows + SIDE * width + k, width);
            _tile_loadd(6, left + k * SIDE, DEPTH);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(2, 5, 6);
            if (pair) {
                _tile_loadd(7, right + k * SIDE, DEPTH);
                _tile_dpbssd(1, 4, 7);
                _tile_dpbssd(3, 5, 7);
            }
        }
        _tile_stored(0, sums[0], DEPTH);
        _tile_stored(2, sums[2], DEPTH);
        if (pair) {
            _tile_stored(1, sums[1], DEPTH);
            _tile_stored(3, sums[3], DEPTH);
        }
        for (int i = 0; i < ROWS; i++) {
            const int half = i / SIDE * 2, row = i % SIDE;
            largest[i] = _mm512_max_epi32(largest[i], _mm512_load_si512(sums[half][row]));
            if (pair) largest[i] = _mm512_max_epi32(largest[i], _mm512_load_si512(sums[half + 1][row]));
        }
    }
    for (int i = 0; i < ROWS; i++) out[i] = (float)_mm512_reduce_max_epi32(largest[i]);
}

/* For every row and question the largest sum of products with one of the question's columns, times both scales.

   rows       num_rows x width
   row_scales num_rows
   columns    questions x tiles x (width / DEPTH) x SIDE x SIDE x 4: a tile has SIDE columns; of a column 4 numbers stand
              together, then the same 4 of the next column
   scales     of the questions
   tiles      of a question
   out        of question q and row r: out[q * stride + r]
   Returns 0, or 1 where the width is none that it can do: then nothing is written. */
AMX PUBLIC int memspan_amx_largest(const int8_t *rows, const float *row_scales, int64_t num_rows, int64_t width,
                                   const int8_t *columns, const float *scales, int64_t questions, int64_t tiles,
                                   float *out, int64_t stride) {
    if (width <= 0 || width % DEPTH || width > MOST_WIDTH || tiles <= 0) return 1;
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = DEPTH;
        config.rows[i] = SIDE;
    }
    _tile_loadconfig(&config);
    for (int64_t first = 0; first < num_rows; first += ROWS) {
        const int64_t count = num_rows - first < ROWS ? num_rows - first : ROWS;
        const int8_t *block = rows + first * width;
        int8_t filled[count < ROWS ? ROWS * width : 1];
        if (count < ROWS) {
            memset(filled, 0, sizeof filled);
            memcpy(filled, block, count * width);
            block = filled;
        }
        for (int64_t question = 0; question < questions; question++) {
            float largest[ROWS];
            largest_of_rows(block, width, columns + question * tiles * SIDE * width, tiles, largest);
            float *scores = out + question * stride + first;
            for (int64_t i = 0; i < count; i++) scores[i] = largest[i] * row_scales[first + i] * scales[question];
        }
    }
    _tile_release();
    return 0;
}

#else

PUBLIC int memspan_amx_ready(void) { return 0; }

PUBLIC int memspan_amx_largest(const int8_t *rows, const float *row_scales, int64_t num_rows, int64_t width,
                               const int8_t *columns, const float *scales, int64_t questions, int64_t tiles,
                               float *out, int64_t stride) {
    return 1;
}

#endif
