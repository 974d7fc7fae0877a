// Single matrix instructions, one warp each: d = a * b + c, every matrix in row-major order (b: k rows of n).
// `run` returns 0, or the error of the CUDA runtime. Fragment layouts are those of the PTX manual, "Warp Level Matrix
// Instructions".
#include <cstdint>
#include <cuda_runtime.h>

enum Kind { F16_F32, F16_F16, BF16_F32, TF32_F32, E4M3_F32, E5M2_F32, E4M3_F16, E5M2_F16 };

// Bits of the element of a row-major matrix, from 16-bit, 32-bit or 8-bit storage.
template <typename T> __device__ uint32_t pair(const T* x, int i0, int i1) {
    return uint32_t(x[i0]) | uint32_t(x[i1]) << 16;
}

__device__ uint32_t quad(const uint8_t* x, int start, int stride) {
    uint32_t found = 0;
    for (int i = 0; i < 4; ++i) found |= uint32_t(x[start + i * stride]) << (8 * i);
    return found;
}

// Rows of c and d that a thread holds: (row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1).
struct Place {
    int group = threadIdx.x >> 2, inner = threadIdx.x & 3;
    __device__ int row(int i) const { return group + (i >> 1) * 8; }
    __device__ int column(int i) const { return inner * 2 + (i & 1); }
};

#define MMA_F32(NAME, A0, A1, A2, A3, B0, B1)                                                              \
    asm volatile("mma.sync.aligned." NAME " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"        \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                         \
                 : "r"(A0), "r"(A1), "r"(A2), "r"(A3), "r"(B0), "r"(B1))

#define MMA_F16(NAME, A0, A1, A2, A3, B0, B1)                                                              \
    asm volatile("mma.sync.aligned." NAME " {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"                    \
                 : "+r"(h[0]), "+r"(h[1])                                                                 \
                 : "r"(A0), "r"(A1), "r"(A2), "r"(A3), "r"(B0), "r"(B1))

template <int KIND> __global__ void multiply(const void* a_, const void* b_, const void* c_, void* d_) {
#if __CUDA_ARCH__ >= 800
    const Place at;
    const int g = at.group, t = at.inner, tile = blockIdx.x;
    constexpr bool half_output = KIND == F16_F16 || KIND == E4M3_F16 || KIND == E5M2_F16;
    constexpr int K = KIND == TF32_F32 ? 8 : KIND <= BF16_F32 ? 16 : 32, N = 8;
    float d[4];
    uint32_t h[2];
    const float* c = static_cast<const float*>(c_) + tile * 128;
    const uint16_t* ch = static_cast<const uint16_t*>(c_) + tile * 128;
    for (int i = 0; i < 4; ++i)
        if constexpr (!half_output) d[i] = c[at.row(i) * N + at.column(i)];
    if constexpr (half_output)
        for (int i = 0; i < 2; ++i) h[i] = pair(ch, (g + 8 * i) * N + 2 * t, (g + 8 * i) * N + 2 * t + 1);
    if constexpr (KIND == TF32_F32) {
        const uint32_t *a = static_cast<const uint32_t*>(a_) + tile * 16 * K, *b = static_cast<const uint32_t*>(b_) + tile * K * N;
        MMA_F32("m16n8k8.row.col.f32.tf32.tf32.f32", a[g * K + t], a[(g + 8) * K + t], a[g * K + t + 4], a[(g + 8) * K + t + 4],
                b[t * N + g], b[(t + 4) * N + g]);
    } else if constexpr (K == 16) {
        const uint16_t *a = static_cast<const uint16_t*>(a_) + tile * 16 * K, *b = static_cast<const uint16_t*>(b_) + tile * K * N;
        uint32_t x[4], y[2];
        for (int i = 0; i < 4; ++i) {
            const int row = g + (i & 1) * 8, column = 2 * t + (i >> 1) * 8;
            x[i] = pair(a, row * K + column, row * K + column + 1);
        }
        for (int i = 0; i < 2; ++i) y[i] = pair(b, (2 * t + 8 * i) * N + g, (2 * t + 8 * i + 1) * N + g);
        if constexpr (KIND == F16_F32) MMA_F32("m16n8k16.row.col.f32.f16.f16.f32", x[0], x[1], x[2], x[3], y[0], y[1]);
        if constexpr (KIND == BF16_F32) MMA_F32("m16n8k16.row.col.f32.bf16.bf16.f32", x[0], x[1], x[2], x[3], y[0], y[1]);
        if constexpr (KIND == F16_F16) MMA_F16("m16n8k16.row.col.f16.f16.f16.f16", x[0], x[1], x[2], x[3], y[0], y[1]);
    } else {
#if __CUDA_ARCH__ >= 890
        const uint8_t *a = static_cast<const uint8_t*>(a_) + tile * 16 * K, *b = static_cast<const uint8_t*>(b_) + tile * K * N;
        uint32_t x[4], y[2];
        for (int i = 0; i < 4; ++i) x[i] = quad(a, (g + (i & 1) * 8) * K + 4 * t + (i >> 1) * 16, 1);
        for (int i = 0; i < 2; ++i) y[i] = quad(b, (4 * t + 16 * i) * N + g, N);
        if constexpr (KIND == E4M3_F32) MMA_F32("m16n8k32.row.col.f32.e4m3.e4m3.f32", x[0], x[1], x[2], x[3], y[0], y[1]);
        if constexpr (KIND == E5M2_F32) MMA_F32("m16n8k32.row.col.f32.e5m2.e5m2.f32", x[0], x[1], x[2], x[3], y[0], y[1]);
#ifdef FP8_HALF_OUTPUT
        if constexpr (KIND == E4M3_F16) MMA_F16("m16n8k32.row.col.f16.e4m3.e4m3.f16", x[0], x[1], x[2], x[3], y[0], y[1]);
        if constexpr (KIND == E5M2_F16) MMA_F16("m16n8k32.row.col.f16.e5m2.e5m2.f16", x[0], x[1], x[2], x[3], y[0], y[1]);
#endif
#endif
    }
    float* out = static_cast<float*>(d_) + tile * 128;
    uint16_t* half_out = static_cast<uint16_t*>(d_) + tile * 128;
    for (int i = 0; i < 4; ++i) {
        const int place = at.row(i) * N + at.column(i);
        if constexpr (half_output) half_out[place] = uint16_t(h[i >> 1] >> (16 * (i & 1)));
        else out[place] = d[i];
    }
#endif
}

template <int KIND> static int launch(const void* a, const void* b, const void* c, void* d, int tiles) {
    multiply<KIND><<<tiles, 32>>>(a, b, c, d);
    const cudaError_t launched = cudaGetLastError();
    return launched != cudaSuccess ? launched : cudaDeviceSynchronize();
}

// a: tiles x 16 x K, b: tiles x K x 8, c and d: tiles x 16 x 8; pointers to memory of the current device.
extern "C" int run(int kind, const void* a, const void* b, const void* c, void* d, int tiles) {
    switch (kind) {
        case F16_F32: return launch<F16_F32>(a, b, c, d, tiles);
        case F16_F16: return launch<F16_F16>(a, b, c, d, tiles);
        case BF16_F32: return launch<BF16_F32>(a, b, c, d, tiles);
        case TF32_F32: return launch<TF32_F32>(a, b, c, d, tiles);
        case E4M3_F32: return launch<E4M3_F32>(a, b, c, d, tiles);
        case E5M2_F32: return launch<E5M2_F32>(a, b, c, d, tiles);
        case E4M3_F16: return launch<E4M3_F16>(a, b, c, d, tiles);
        case E5M2_F16: return launch<E5M2_F16>(a, b, c, d, tiles);
    }
    return cudaErrorInvalidValue;
}
