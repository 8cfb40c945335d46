// The feed-forward block's products by tiles: each block of threads computes one square tile of the result, and finishes
// it.
#include "ffn_finish.h"
#include "ffn_tile.h"

namespace tilewright::gpu {
namespace {

// How the operands lie in memory, row by row or depth by depth. No product of an x that lies in columns with weights that
// lie in rows is worth a kernel of its own; its loads are slow ones.
enum Layout { kRowsRows, kRowsColumns, kColumnsColumns };

template <class T, int kSize, Layout kLayout>
struct Sizes {
  using Block = FfnBlock<T, kSize, kLayout == kColumnsColumns, kLayout != kRowsRows>;
  using Result = FfnTile<kSize, kSize, Block::kThreads>;
  static constexpr int kStageBytes = Block::kStages * Block::kStageBytes;
  // On a multiprocessor of sm_80; float32's operands take three times the registers.
  static constexpr int kBlocks = sizeof(T) == 2 ? (kSize == 128 ? 2 : 3) : kSize == 128 ? 1 : 3;
  static constexpr int kShared = kStageBytes > Result::kBytes ? kStageBytes : Result::kBytes;
};

// Blocks that run at the same time form a square, so many rows high, which needs few different operands.
constexpr int kHigh = 8;

// Columns of the result that a block has.
template <int kSize>
TW_DEVICE int columns_of(const FfnProduct& p) {
  return p.paired ? kSize / 2 : kSize;
}

template <class T, int kSize, Layout kLayout>
TW_KERNEL_OF_BLOCKS((Sizes<T, kSize, kLayout>::Block::kThreads), (Sizes<T, kSize, kLayout>::kBlocks))
ffn_product_kernel(TW_KERNEL_ARGUMENT FfnProduct p) {
  using S = Sizes<T, kSize, kLayout>;
  const int columns = columns_of<kSize>(p);
  const int row_blocks = static_cast<int>((p.m + kSize - 1) / kSize);
  const int column_blocks = static_cast<int>((p.n + columns - 1) / columns);
  const int area = kHigh * column_blocks, top = block_x() / area * kHigh;
  const int height = row_blocks - top < kHigh ? row_blocks - top : kHigh;
  const int row_block = top + block_x() % area % height, column_block = block_x() % area / height;
  const int64_t row = int64_t{row_block} * kSize, column = int64_t{column_block} * columns;

  typename S::Block block;
  block.multiply_all({p.a, {row, p.m, kSize}, p.k}, {p.b, {column, p.n, columns}, p.k}, p.k);
  const typename S::Result tile{shared_memory<float>(), row, column};
  block.store(tile.at, S::Result::kStride);
  sync_block();
  if (p.finish == Finish::kOut) {
    finish_out<T>(p, tile);
  } else if constexpr (kLayout != kColumnsColumns) {
    if (p.finish == Finish::kHidden)
      finish_hidden<T>(p, tile);
    else
      finish_gradient<T>(p, tile, row_block);
  }
}

template <class T, int kSize, Layout kLayout>
int run_layout(const FfnProduct& p, Stream stream) {
  using S = Sizes<T, kSize, kLayout>;
  const int64_t columns = p.paired ? kSize / 2 : kSize;
  const int64_t column_blocks = (p.n + columns - 1) / columns, blocks = (p.m + kSize - 1) / kSize * column_blocks;
  if (kHigh * column_blocks > INT32_MAX)
    return kTooManyBlocks;  // which the kernel counts, also where it has fewer rows
  return launch<ffn_product_kernel<T, kSize, kLayout>>({blocks}, S::Block::kThreads, S::kShared, stream, p);
}

template <class T, int kSize>
int run_size(const FfnProduct& p, Stream stream) {
  if (p.a.columns) return run_layout<T, kSize, kColumnsColumns>(p, stream);
  return p.b.columns ? run_layout<T, kSize, kRowsColumns>(p, stream) : run_layout<T, kSize, kRowsRows>(p, stream);
}

template <class T>
int run(const FfnProduct& p, Stream stream) {
  return ffn_tile_size(p) == 128 ? run_size<T, 128>(p, stream) : run_size<T, 64>(p, stream);
}

}  // namespace

int ffn_product(const FfnProduct& p, DType dtype, Stream stream) {
  if (p.m == 0 || p.n == 0) return 0;
  if (p.m <= kFewRows && !p.a.columns && !p.b.columns && p.finish != Finish::kGradient)
    return ffn_product_of_few_rows(p, dtype, stream);
  switch (dtype) {
    case DType::kFloat32: return run<float>(p, stream);
    case DType::kFloat16: return run<Half>(p, stream);
    case DType::kBFloat16: return run<BFloat16>(p, stream);
    default: return kUnsupported;
  }
}

}  // namespace tilewright::gpu
