// Products of at most 16 rows, as decoding has them: their time is that of reading B, so it goes from memory straight to
// the tensor cores. A block has 16 rows of B; its warps share the depth, and their sums are added in a fixed order.
//
// Since the order along the depth does not matter, as long as it is the same in A and B, lane 4 g + t reads its numbers of
// row g in one piece, chunk t, whichever ones the products' layout would give to it.
#include "ffn_finish.h"
#include "operand.h"

namespace tilewright::gpu {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize, kColumns = 16;
using Result = FfnTile<kFewRows, kColumns, kThreads>;
constexpr int kPartBytes = kWarps * kFewRows * kColumns * int{sizeof(float)};

using Words = Vector<uint32_t, 4>;

// A chunk of row i from depth k on; zeros for what is not there.
template <class T>
TW_DEVICE Words load_chunk(const FfnOperand& o, int64_t i, bool there, int64_t k, int64_t depth) {
  Words words{};
  if (!there || k >= depth) return words;
  const Global<const T> from = global<T>(o.data) + (i * o.stride + k * o.depth_stride);
  if (o.wide && k + kChunk<T> <= depth) return global<uint32_t>(static_cast<const void*>(from.p)).load_vector<4>();
  TW_UNROLL for (int e = 0; e < kChunk<T>; ++e) {
    if (k + e >= depth) continue;
    if constexpr (sizeof(T) == 2)
      words[e / 2] |= uint32_t{from.load(e * o.depth_stride).bits} << 16 * (e % 2);
    else
      words[e] = bits_of(from.load(e * o.depth_stride));
  }
  return words;
}

// A lane's chunk has numbers for two products of 16-bit types, for one of float32.
template <class T>
constexpr int kProducts = kChunk<T> / 4;
// Register i: the first or the second half of what a chunk has for product n.
template <class T, class F>
TW_DEVICE void set_register(F& fragment, int i, const Words& words, int n, int half) {
  if constexpr (sizeof(T) == 2)
    fragment.set(i, words[2 * n + half]);
  else
    fragment.set(i, words[2 * half], words[2 * half + 1]);
}

template <class T>
TW_KERNEL_OF_BLOCKS(kThreads, 2)
ffn_few_rows_kernel(TW_KERNEL_ARGUMENT FfnProduct p) {
  // Chunks that a lane has under way at a time, of each of its rows.
  constexpr int kAhead = 4;
  const int g = lane_index() / 4, t = lane_index() % 4;
  const int columns = p.paired ? kColumns / 2 : kColumns;
  const int64_t column = int64_t{block_x()} * columns, first = column + g, second = first + (p.paired ? p.n : 8);
  const bool there = first < p.n, second_there = p.paired ? there : second < p.n;
  float sums[2][4] = {};
  const int64_t step = 4 * kChunk<T>;
  for (int64_t start = warp_index() * step; start < p.k; start += kAhead * kWarps * step) {
    Words a[kAhead][2], b[kAhead][2];
    TW_UNROLL for (int s = 0; s < kAhead; ++s) {
      const int64_t k = start + s * kWarps * step + t * kChunk<T>;
      b[s][0] = load_chunk<T>(p.b, first, there, k, p.k);
      b[s][1] = load_chunk<T>(p.b, second, second_there, k, p.k);
      a[s][0] = load_chunk<T>(p.a, g, g < p.m, k, p.k);
      a[s][1] = load_chunk<T>(p.a, g + 8, g + 8 < p.m, k, p.k);
    }
    TW_UNROLL for (int s = 0; s < kAhead; ++s) TW_UNROLL for (int n = 0; n < kProducts<T>; ++n) {
      LeftFragment<T> x;
      RightFragment<T> y[2];
      TW_UNROLL for (int i = 0; i < 2; ++i) {
        TW_UNROLL for (int half = 0; half < 2; ++half) {
          set_register<T>(x, i + 2 * half, a[s][i], n, half);
          set_register<T>(y[i], half, b[s][i], n, half);
        }
      }
      TW_UNROLL for (int i = 0; i < 2; ++i) multiply<T>(sums[i], x, y[i]);
    }
  }

  const auto parts = shared_memory<float>();
  TW_UNROLL for (int n = 0; n < 2; ++n) TW_UNROLL for (int h = 0; h < 2; ++h) parts.store_vector<2>(
      ((warp_index() * kFewRows + g + 8 * h) * kColumns) + 8 * n + 2 * t, {{sums[n][2 * h], sums[n][2 * h + 1]}});
  sync_block();
  const Result tile{shared_memory<float>(kPartBytes), 0, column};
  const int i = thread_index() / kColumns, j = thread_index() % kColumns;
  float whole = 0.0f;
  for (int w = 0; w < kWarps; ++w) whole += parts.load((w * kFewRows + i) * kColumns + j);
  tile.at.store(i * Result::kStride + j, whole);
  sync_block();
  if (p.finish == Finish::kOut)
    finish_out<T>(p, tile);
  else
    finish_hidden<T>(p, tile);
}

template <class T>
int run(const FfnProduct& p, Stream stream) {
  const int64_t columns = p.paired ? kColumns / 2 : kColumns;
  return launch<ffn_few_rows_kernel<T>>({(p.n + columns - 1) / columns}, kThreads, kPartBytes + Result::kBytes, stream,
                                        p);
}

}  // namespace

int ffn_product_of_few_rows(const FfnProduct& p, DType dtype, Stream stream) {
  switch (dtype) {
    case DType::kFloat32: return run<float>(p, stream);
    case DType::kFloat16: return run<Half>(p, stream);
    case DType::kBFloat16: return run<BFloat16>(p, stream);
    default: return kUnsupported;
  }
}

}  // namespace tilewright::gpu
