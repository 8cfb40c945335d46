// Attention backward: dq, dk, dv, and the gradients of a float mask and of the sinks.
//
// P is recomputed from the scores and the log-sum of the forward pass (FlashAttention, Dao et al. 2022), so memory
// stays linear in the sequence length. For each block of keys, over all blocks of query rows that see it:
//
//   S^T = K Q^T   dP^T = V dO^T   P^T = exp(S^T - lse)   dS^T = P^T * (dP^T - delta)
//   dV += P^T dO  dK += dS^T Q    dQ^T += K^T dS^T
//
// with delta = rowsum(dO * O) - dlse. A task owns some key blocks of one key/value head, so it alone writes their dK
// and dV, summed over the heads of the group. When heads are few their key blocks are dealt to several tasks, each with
// a dQ of its own, and these are added in a fixed order: results depend neither on timing nor on the number of threads.
#include "attention_backward.h"

#include "attention_mask_gradient.h"
#include "attention_pairs.h"
#include "isa.h"
#include "parallel.h"

namespace tilewright {
namespace TW_ISA {
namespace {

// Keys per block and strips per row block: the best of 48 to 192 by 3 to 6 on a Zen 3 core at D 64 and 128; the two
// dK/dV accumulators, K, V and both score tiles fit in L2 (512 KiB).
constexpr int64_t kKeyBlock = 192;
constexpr int64_t kRowBlock = 3;
// Tasks aimed at by dealing out the key blocks of a head. Not a function of the thread count, so that sums are not
// either.
constexpr int64_t kTasks = 16;

template <class A>
struct BackwardPlan {
  const AttentionParams& p;
  int64_t strips;     // of the longest sequence, all heads of a group
  int64_t key_block;  // keys
  int64_t shares;     // tasks that the key blocks of one head are dealt to
  RowStats<A> stats;  // [B * Hkv][strips * lanes]
  // With shares > 1, common to the shares of a head:
  A *queries, *grads;  // [B * Hkv][strips][D or Dv][lanes]
  A* dq;               // [B * Hkv][shares][strips][D][lanes]
  int64_t rows() const { return strips * kStripLanes<A>; }
};

// Row-major rows, for the products that sum over queries: in place, or a widened copy.
template <class A>
RowTile<A> row_major(const AttentionParams& p, const View4& view, const Sequence& s, const HeadGroup& group,
                     int64_t dim, A* buffer) {
  constexpr int L = Simd<A>::lanes;
  const bool same_type = size_of(p.dtype) == static_cast<int64_t>(sizeof(A));
  if (same_type && group.size == 1 && dim % L == 0 && view.stride[2] >= 0 && view.stride[2] <= 2 * dim)
    return {reinterpret_cast<const A*>(query_row(p, view, s, group.first, 0)), view.stride[2]};
  const int64_t padded = round_up(dim, L);
  for (int64_t r = 0; r < s.len_q * group.size; ++r)
    widen_row<A>(p.dtype, query_row(p, view, s, group.first + r % group.size, r / group.size), dim, padded,
                 buffer + r * padded);
  return {buffer, padded};
}

template <class A>
struct BackwardWorkspace {
  A *queries, *grads, *query_rows, *grad_rows, *dq, *keys, *values, *dk, *dv, *probs, *ds;
  Strip<A>* strips;
  TileBuffers<A> buffers;

  static constexpr int64_t kStride = kRowBlock * kStripLanes<A>;
  BackwardWorkspace(const BackwardPlan<A>& plan, Carver& carver) : buffers(plan.p, plan.key_block, kStride, carver) {
    const AttentionParams& p = plan.p;
    constexpr int L = Simd<A>::lanes;
    queries = carver.take<A>(plan.shares == 1 ? plan.rows() * p.head_dim : 0);
    grads = carver.take<A>(plan.shares == 1 ? plan.rows() * p.head_dim_v : 0);
    query_rows = carver.take<A>(plan.rows() * round_up(p.head_dim, L));
    grad_rows = carver.take<A>(plan.rows() * round_up(p.head_dim_v, L));
    dq = carver.take<A>(p.dq.data != nullptr && plan.shares == 1 ? plan.rows() * p.head_dim : 0);
    keys = carver.take<A>(plan.key_block * p.head_dim);
    values = carver.take<A>(plan.key_block * p.head_dim_v);
    dk = carver.take<A>(plan.key_block * round_up(p.head_dim, L));
    dv = carver.take<A>(plan.key_block * round_up(p.head_dim_v, L));
    probs = carver.take<A>(plan.key_block * kStride);
    ds = carver.take<A>(plan.key_block * kStride);
    strips = carver.take<Strip<A>>(kRowBlock);
  }
};

// --- statistics
// --------------------------------------------------------------------------------------------------------

// dot[r] = dout_r . out_r of `count` rows. In double: dP - delta cancels where one key has most of the weight, and what is
// left should be the rounding of dP alone. Four rows at a time, since each sum is a chain of additions.
template <class A>
void dot_rows(DType dtype, const char* const* x, const char* const* y, int count, int64_t dim, A* dot) {
  alignas(64) A widened[2][4][kMaxHeadDim];
  const bool same_type = size_of(dtype) == static_cast<int64_t>(sizeof(A));
  for (int r = 0; r < count; r += 4) {
    const A *a[4], *b[4];
    for (int i = 0; i < 4; ++i) {
      const int row = r + i < count ? r + i : count - 1;
      a[i] = same_type ? reinterpret_cast<const A*>(x[row]) : widened[0][i];
      b[i] = same_type ? reinterpret_cast<const A*>(y[row]) : widened[1][i];
      if (same_type) continue;
      widen_row<A>(dtype, x[row], dim, dim, widened[0][i]);
      widen_row<A>(dtype, y[row], dim, dim, widened[1][i]);
    }
    double sum[4] = {0, 0, 0, 0};
    for (int64_t d = 0; d < dim; ++d)
      for (int i = 0; i < 4; ++i) sum[i] += double{a[i][d]} * double{b[i][d]};
    for (int i = 0; i < 4 && r + i < count; ++i) dot[r + i] = static_cast<A>(sum[i]);
  }
}

// The first pass over the queries: statistics, and Q^T and dO^T where several tasks will read them.
template <class A>
void prepare_strip(const BackwardPlan<A>& plan, const Sequence& s, const HeadGroup& group, int64_t index) {
  const AttentionParams& p = plan.p;
  const int64_t first = index * kStripLanes<A>;
  if (first >= s.len_q * group.size) return;
  Strip<A> strip;
  make_strip(p, s, group, first, &strip);
  const int64_t row = (s.batch * p.heads_kv + group.kv) * plan.rows() + first;
  if (plan.shares > 1) pack_query_strip(p, s, strip, plan.queries + row * p.head_dim, plan.grads + row * p.head_dim_v);
  const RowStats<A> stats = plan.stats.at(row);
  const auto at = [&](const View4& view, int r) -> const A& {
    return static_cast<const A*>(view.data)[query_offset(p, view, s, strip.head[r], strip.row[r])];
  };
  char *grads[kStripLanes<A>], *outs[kStripLanes<A>];
  strip_rows(p, p.dout, s, strip, grads);
  strip_rows(p, p.out, s, strip, outs);
  for (int r = 0; r < kStripLanes<A>; ++r) stats.delta[r] = stats.dlse[r] = 0;
  dot_rows<A>(p.dtype, grads, outs, strip.count, p.head_dim_v, stats.delta);
  for (int r = 0; r < kStripLanes<A>; ++r) {
    stats.max[r] = static_cast<A>(kInfinity);
    stats.inverse[r] = 0;
    if (r >= strip.count) continue;
    const A* forward = &at(p.row_stats, r);
    stats.max[r] = forward[0];
    stats.inverse[r] = forward[p.row_stats.stride[3]];
    if (stats.max[r] == static_cast<A>(kInfinity)) stats.delta[r] = 0;  // without a key O is 0, whatever dO is
    if (p.dlse.data == nullptr) continue;
    stats.dlse[r] = at(p.dlse, r);
    stats.delta[r] -= stats.dlse[r];
  }
}

// --- dq, dk, dv
// --------------------------------------------------------------------------------------------------------

template <class A>
void write_dq(const BackwardPlan<A>& plan, const Sequence& s, const HeadGroup& group, int64_t index, const A* dq) {
  constexpr int lanes = kStripLanes<A>;
  const AttentionParams& p = plan.p;
  alignas(64) A scale[lanes];
  char* rows[lanes];
  const int64_t first = index * lanes, left = s.len_q * group.size - first;
  const int count = static_cast<int>(left < lanes ? left : lanes);
  for (int r = 0; r < lanes; ++r) {
    scale[r] = static_cast<A>(p.scale);
    if (r < count) rows[r] = query_row(p, p.dq, s, group.first + (first + r) % group.size, (first + r) / group.size);
  }
  unpack_strip<A>(p.dtype, dq, p.head_dim, scale, rows, count);
}

// Adds what the row block that starts at strip `first` contributes to the key block's dK, dV and to its own dQ.
template <class A>
void row_block(const BackwardPlan<A>& plan, const Sequence& s, const HeadGroup& group, int64_t first, int64_t key,
               int64_t keys, RowTile<A> k, RowTile<A> v, bool finite_keys, RowTile<A> queries, RowTile<A> grads, A* dq,
               BackwardWorkspace<A>& w) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  constexpr int64_t stride = BackwardWorkspace<A>::kStride;
  const AttentionParams& p = plan.p;
  const int64_t total = s.len_q * group.size, last = (total + lanes - 1) / lanes;
  const int64_t count = last - first < kRowBlock ? last - first : kRowBlock;
  int64_t begin = key + keys, end = key;
  for (int64_t i = 0; i < count; ++i) {
    make_strip(p, s, group, (first + i) * lanes, &w.strips[i]);
    if (w.strips[i].first_key == w.strips[i].last_key) continue;
    if (w.strips[i].first_key < begin) begin = w.strips[i].first_key;
    if (w.strips[i].last_key > end) end = w.strips[i].last_key;
  }
  begin = (begin > key ? begin : key) / 4 * 4;  // a Philox counter's four keys stay together
  if (end > key + keys) end = key + keys;
  if (begin >= end) return;
  const int64_t n = end - begin, skipped = begin - key;
  const RowTile<A> kt{k.data + skipped * k.stride, k.stride}, vt{v.data + skipped * v.stride, v.stride};

  const auto stats_of = [&](int64_t strip) {
    return plan.stats.at((s.batch * p.heads_kv + group.kv) * plan.rows() + strip * lanes);
  };
  bool by_pairs = may_exclude(p) && !finite_keys;
  for (int64_t at = first; at < first + count && may_exclude(p) && !by_pairs; ++at)
    by_pairs = !all_finite(w.queries + at * p.head_dim * lanes, lanes, p.head_dim, lanes) ||
               !all_finite(w.grads + at * p.head_dim_v * lanes, lanes, p.head_dim_v, lanes) ||
               !all_finite(stats_of(at).inverse, 0, 1, lanes) || !all_finite(stats_of(at).delta, 0, 1, lanes);

  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = first + i;
    const RowStats<A> stats = stats_of(at);
    A *probs = w.probs + i * lanes, *ds = w.ds + i * lanes;
    gradient_tile<A>(p, s, w.strips[i], stats, w.queries + at * p.head_dim * lanes, w.grads + at * p.head_dim_v * lanes,
                     kt, vt, begin, n, false, by_pairs, w.buffers, probs, ds, stride);
    if (p.dq.data != nullptr && by_pairs)
      add_keys(kt.data, kt.stride, n, p.head_dim, ds, stride, w.strips[i].count, dq + at * p.head_dim * lanes);
    else if (p.dq.data != nullptr)
      gemm<A, true>(p.head_dim, w.strips[i].vectors, n, kt.data, kt.stride, ds, stride, dq + at * p.head_dim * lanes,
                    lanes, {true, nullptr}, gradient_block(p));
  }
  const int64_t row = first * lanes, depth = total - row < count * lanes ? total - row : count * lanes;
  const int64_t width = round_up(p.head_dim, L), width_v = round_up(p.head_dim_v, L);
  if (by_pairs) {
    if (p.dv.data != nullptr)
      add_queries(grads.data + row * grads.stride, grads.stride, depth, p.head_dim_v, w.probs, stride, n,
                  w.dv + skipped * width_v, width_v);
    if (p.dk.data != nullptr)
      add_queries(queries.data + row * queries.stride, queries.stride, depth, p.head_dim, w.ds, stride, n,
                  w.dk + skipped * width, width);
    return;
  }
  if (p.dv.data != nullptr)
    gemm<A, false>(n, static_cast<int>(width_v / L), depth, w.probs, stride, grads.data + row * grads.stride,
                   grads.stride, w.dv + skipped * width_v, width_v, {true, nullptr}, kShortBlock);
  if (p.dk.data != nullptr)
    gemm<A, false>(n, static_cast<int>(width / L), depth, w.ds, stride, queries.data + row * queries.stride,
                   queries.stride, w.dk + skipped * width, width, {true, nullptr}, gradient_block(p));
}

template <class A>
void zero(A* data, int64_t count) {
  std::memset(data, 0, static_cast<size_t>(count) * sizeof(A));
}

// The key blocks share, share + shares, ... of one sequence and key/value head.
template <class A>
void key_blocks(const BackwardPlan<A>& plan, const Sequence& s, const HeadGroup& group, int64_t share,
                BackwardWorkspace<A>& w) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  const AttentionParams& p = plan.p;
  const int64_t total = s.len_q * group.size, strips = (total + lanes - 1) / lanes;
  const int64_t width = round_up(p.head_dim, L), width_v = round_up(p.head_dim_v, L);
  A* dq = w.dq;
  if (plan.shares > 1)
    dq = plan.dq + ((s.batch * p.heads_kv + group.kv) * plan.shares + share) * plan.rows() * p.head_dim;
  if (p.dq.data != nullptr) zero(dq, strips * lanes * p.head_dim);
  if (share * plan.key_block >= s.len_k && plan.shares > 1) return;

  if (plan.shares > 1) {
    const int64_t row = (s.batch * p.heads_kv + group.kv) * plan.rows();
    w.queries = plan.queries + row * p.head_dim;
    w.grads = plan.grads + row * p.head_dim_v;
  }
  for (int64_t i = 0; i < strips && plan.shares == 1; ++i) {
    make_strip(p, s, group, i * lanes, &w.strips[0]);
    pack_query_strip(p, s, w.strips[0], w.queries + i * p.head_dim * lanes, w.grads + i * p.head_dim_v * lanes);
  }
  const RowTile<A> queries = row_major(p, p.q, s, group, p.head_dim, w.query_rows);
  const RowTile<A> grads = row_major(p, p.dout, s, group, p.head_dim_v, w.grad_rows);
  const KeyRows k = key_rows(p, p.k, s, group.kv), v = key_rows(p, p.v, s, group.kv);
  const KeyRows dk = key_rows(p, p.dk, s, group.kv), dv = key_rows(p, p.dv, s, group.kv);
  const A dropped = static_cast<A>(p.dropout_p > 0 ? dropout_scale(p.dropout_p) : 1);
  for (int64_t key = share * plan.key_block; key < s.len_k; key += plan.shares * plan.key_block) {
    const int64_t keys = key + plan.key_block < s.len_k ? plan.key_block : s.len_k - key;
    const RowTile<A> kt = load_rows(p.dtype, k, key, keys, p.head_dim, w.keys);
    const RowTile<A> vt = load_rows(p.dtype, v, key, keys, p.head_dim_v, w.values);
    const bool finite_keys =
        all_finite(kt.data, kt.stride, keys, p.head_dim) && all_finite(vt.data, vt.stride, keys, p.head_dim_v);
    zero(w.dk, keys * width);
    zero(w.dv, keys * width_v);
    for (int64_t i = 0; i < strips; i += kRowBlock)
      row_block(plan, s, group, i, key, keys, kt, vt, finite_keys, queries, grads, dq, w);
    for (int64_t j = 0; j < keys; ++j) {
      if (p.dk.data != nullptr)
        narrow_row<A>(p.dtype, w.dk + j * width, p.head_dim, static_cast<A>(p.scale), dk.row(key + j));
      if (p.dv.data != nullptr) narrow_row<A>(p.dtype, w.dv + j * width_v, p.head_dim_v, dropped, dv.row(key + j));
    }
  }
  if (p.dq.data == nullptr || plan.shares > 1) return;
  for (int64_t i = 0; i < strips; ++i) write_dq(plan, s, group, i, dq + i * p.head_dim * lanes);
}

// Adds the shares' dQ of one strip, in order.
template <class A>
void reduce_dq(const BackwardPlan<A>& plan, const Sequence& s, const HeadGroup& group, int64_t index) {
  constexpr int L = Simd<A>::lanes, lanes = kStripLanes<A>;
  if (index * lanes >= s.len_q * group.size) return;
  const int64_t size = plan.p.head_dim * lanes, step = plan.strips * size;
  A* total = plan.dq + (s.batch * plan.p.heads_kv + group.kv) * plan.shares * step + index * size;
  for (int64_t n = 1; n < plan.shares; ++n)
    for (int64_t at = 0; at < size; at += L) store(total + at, load(total + at) + load(total + n * step + at));
  write_dq(plan, s, group, index, total);
}

template <class A>
Status backward_as(const AttentionParams& p) {
  constexpr int lanes = kStripLanes<A>;
  const int threads = p.num_threads < 1 ? 1 : p.num_threads;
  const int64_t groups = p.batch * p.heads_kv;
  if (groups == 0) return Status::kOk;
  BackwardPlan<A> plan{
      p, (p.seqlen_q * (p.heads / p.heads_kv) + lanes - 1) / lanes, kKeyBlock, 1, {}, nullptr, nullptr, nullptr};
  while (plan.key_block > kKeyBlock / 8 && groups * ((p.seqlen_k + plan.key_block - 1) / plan.key_block) < 6)
    plan.key_block /= 2;
  const int64_t key_block_count = (p.seqlen_k + plan.key_block - 1) / plan.key_block;
  plan.shares = (kTasks + groups - 1) / groups;
  if (plan.shares > key_block_count) plan.shares = key_block_count > 0 ? key_block_count : 1;

  const bool split_dq = plan.shares > 1 && p.dq.data != nullptr;
  const auto carve_shared = [&](Carver& carver) {
    const int64_t rows = groups * plan.rows();
    plan.stats = {carver.take<A>(rows), carver.take<A>(rows), carver.take<A>(rows), carver.take<A>(rows)};
    plan.queries = carver.take<A>(plan.shares > 1 ? groups * plan.rows() * p.head_dim : 0);
    plan.grads = carver.take<A>(plan.shares > 1 ? groups * plan.rows() * p.head_dim_v : 0);
    plan.dq = carver.take<A>(split_dq ? groups * plan.shares * plan.rows() * p.head_dim : 0);
  };
  Carver measure(nullptr);
  carve_shared(measure);
  const int64_t shared = measure.used();
  BackwardWorkspace<A> unused(plan, measure);
  int64_t per_thread = measure.used() - shared;
  if (wants_exact_delta(p)) {
    Carver mask_measure(nullptr);
    MaskWorkspace<A> also_unused(p, mask_measure);
    if (mask_measure.used() > per_thread) per_thread = mask_measure.used();
  }
  Scratch scratch(static_cast<size_t>(shared + per_thread * threads));
  if (scratch.data() == nullptr) return Status::kOutOfMemory;
  Carver carver(scratch.data());
  carve_shared(carver);
  const auto thread_memory = [&](int thread) { return Carver(scratch.data() + shared + per_thread * thread); };

  const auto run = [&](int64_t per_group, auto&& body) {
    parallel_for(groups * per_group, threads, [&](int64_t task, int thread) {
      // The key blocks of all heads in turn, so that heads of very different lengths still end together.
      const int64_t group = task % groups;
      body(sequence_of(p, group / p.heads_kv), group_of(p, group % p.heads_kv), task / groups, thread);
    });
  };
  run(plan.strips,
      [&](const Sequence& s, const HeadGroup& group, int64_t index, int) { prepare_strip(plan, s, group, index); });
  if (wants_exact_delta(p)) {
    parallel_for(exact_delta_tasks<A>(p), threads, [&](int64_t task, int thread) {
      Carver own = thread_memory(thread);
      MaskWorkspace<A> w(p, own);
      exact_delta(p, plan.stats, plan.rows(), task, w);
    });
  }
  if (p.dq.data != nullptr || p.dk.data != nullptr || p.dv.data != nullptr) {
    run(plan.shares, [&](const Sequence& s, const HeadGroup& group, int64_t share, int thread) {
      Carver own = thread_memory(thread);
      BackwardWorkspace<A> w(plan, own);
      key_blocks(plan, s, group, share, w);
    });
  }
  if (split_dq) {
    run(plan.strips,
        [&](const Sequence& s, const HeadGroup& group, int64_t index, int) { reduce_dq(plan, s, group, index); });
  }
  if (p.dsinks.data != nullptr) sink_gradient<A>(p, plan.stats, plan.rows(), threads);
  if (p.dmask.data != nullptr) {
    parallel_for(mask_gradient_tasks<A>(p), threads, [&](int64_t task, int thread) {
      Carver own = thread_memory(thread);
      MaskWorkspace<A> w(p, own);
      mask_gradient(p, plan.stats, plan.rows(), task, w);
    });
  }
  return Status::kOk;
}

}  // namespace

Status attention_backward(const AttentionParams& p) {
  const Status status = check_attention(p);
  if (status != Status::kOk) return status;
  if (p.block_table != nullptr || p.seqlens_k != nullptr) return Status::kBadShape;  // caches have no gradient
  if (p.row_stats.data == nullptr && p.q.data != nullptr) return Status::kBadShape;
  return p.dtype == DType::kFloat64 ? backward_as<double>(p) : backward_as<float>(p);
}

}  // namespace TW_ISA
}  // namespace tilewright
