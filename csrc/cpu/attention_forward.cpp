// Attention forward, for plain, packed and cached sequences.
//
// FlashAttention's tiling (Dao et al. 2022): a block of query rows walks over the keys tile by tile, with an online
// softmax, so memory is linear in the sequence length: O, m and l of the block are all that is kept. A block is several
// strips of vector lanes (attention_strip.h); a tile of K and V is fetched once for all of them. Per strip and tile:
//
//   S^T = K Q^T          kKeyTile x lanes, in L1
//   softcap, ALiBi, mask, interval; skipped when nothing cuts the tile
//   P^T = exp(S^T - m), m and l updated; dropout
//   O^T = alpha O^T + V^T P^T
//
// Tiles outside every row's interval are never visited. With few queries and many keys the key range is split as well,
// and the parts are merged by their log-sums ("Flash-Decoding", Dao et al. 2023). A few rows alone, as in decoding,
// take another route through the tile (attention_decode.h).
#include "attention_forward.h"

#include "attention_pairs.h"
#if defined(TW_TILES)
#include "attention_tiles.h"
#else
#include "attention_vectors.h"
#endif
#include "isa.h"
#include "parallel.h"

namespace tilewright {
namespace TW_ISA {
namespace {

// Rows of a block share each fetched tile. Past about 200 the state of a block leaves L2; fewer only when there would
// not be enough blocks to keep the threads evenly busy.
constexpr int64_t kMaxBlockRows = 192;
constexpr int64_t kTasksPerThread = 4;
// A split is worth its merge from about this many keys on. The number of splits never depends on the thread count.
constexpr int64_t kKeysPerSplit = 512;
constexpr int64_t kSplitTasks = 32;

// Rows of a strip's O^T in memory.
int64_t out_rows(const AttentionParams& p) { return round_up(p.head_dim_v, kOutStep); }

template <class A>
struct ForwardPlan {
  const AttentionParams& p;
  int64_t group_rows;  // rows of the longest sequence, all heads of a group
  int64_t strips;      // per sequence and group
  int64_t block;       // strips per block
  int64_t blocks;
  int64_t splits;
  A* partial;  // with splits: O^T, max and sum per sequence, group, strip and split
  int64_t partial_size() const { return (out_rows(p) + 2) * kStripLanes<A>; }
};

template <class A>
struct ForwardWorkspace {
  Operands<A> operands;
  A* states;
  Strip<A>* strip;
  ScoreBuffers<A> scores;
  DecodeBuffers<A> decode;

  ForwardWorkspace(const AttentionParams& p, int64_t block, Carver& carver)
      : operands(p, kKeyTile, block, carver), scores(p, kKeyTile, carver), decode(p, carver) {
    constexpr int lanes = kStripLanes<A>;
    states = carver.take<A>(block * (out_rows(p) + 2) * lanes);
    strip = carver.take<Strip<A>>(block);
  }
};

template <class A>
StripState<A> state_at(A* memory, int64_t out_rows, bool started) {
  constexpr int lanes = kStripLanes<A>;
  return {memory, memory + out_rows * lanes, memory + (out_rows + 1) * lanes, started};
}

// Strip i of the block over keys [key, key + n), of the tile whose first key is `tile`.
template <class A>
void attend_tile(const AttentionParams& p, const Sequence& s, const ForwardWorkspace<A>& w, int64_t i, int64_t tile,
                 int64_t key, int64_t n, StripState<A>* state) {
  const Strip<A>& strip = w.strip[i];
  w.operands.score(i, strip.vectors, key - tile, n, w.scores.scores);
  weigh_scores(p, s, strip, key, n, w.scores, state);
  w.operands.weigh(strip.vectors, key - tile, n, w.scores.scores, w.scores.alpha, state->started, state->out);
  state->started = true;
}

// Strip i of the block over keys [begin, end) once more, pair by pair: see attention_pairs.h.
template <class A>
TW_NOINLINE void attend_pairs(const AttentionParams& p, const Sequence& s, ForwardWorkspace<A>& w, int64_t i,
                              const KeyRows& k, const KeyRows& v, int64_t begin, int64_t end, StripState<A>* state) {
  constexpr int lanes = kStripLanes<A>;
  const Strip<A>& strip = w.strip[i];
  state->started = false;
  for (int64_t key = begin / kKeyTile * kKeyTile; key < end; key += kKeyTile) {
    const int64_t n = min64(kKeyTile, end - key);
    w.operands.load_keys(k, v, key, n);
    w.operands.score(i, strip.vectors, 0, n, w.scores.scores);
    weigh_scores(p, s, strip, key, n, w.scores, state);
    for (int64_t at = 0; at < p.head_dim_v * lanes; ++at)
      state->out[at] =
          state->started && w.scores.alpha[at % lanes] != A{0} ? state->out[at] * w.scores.alpha[at % lanes] : A{0};
    for (int64_t j = 0; j < n; ++j) {
      A row[kMaxHeadDim];
      widen_row<A>(p.dtype, v.row(key + j), p.head_dim_v, p.head_dim_v, row);
      add_keys(row, 0, 1, p.head_dim_v, w.scores.scores + j * lanes, lanes, strip.count, state->out);
    }
    state->started = true;
  }
}

// Keys [*begin, *end) that rows [first, last) of the group may see.
void key_range(const AttentionParams& p, const Sequence& s, int64_t group_size, int64_t first, int64_t last,
               int64_t* begin, int64_t* end) {
  *begin = *end = 0;
  for (int64_t i = first / group_size; i * group_size < last; ++i) {
    int64_t lo, hi;
    key_interval(p, s, i, &lo, &hi);
    if (lo == hi) continue;
    if (*begin == *end || lo < *begin) *begin = lo;
    if (hi > *end) *end = hi;
  }
}

// max: of the scores, as a strip carries it. Of a row without keys the backward wants +inf: every weight is then 0. Where
// the sum is NaN, so is it, in which scores of NaN have no part.
template <class A>
void write_statistics(const AttentionParams& p, const Sequence& s, int64_t h, int64_t i, A max, const Denominator& d) {
  if (p.lse.data != nullptr)
    static_cast<A*>(p.lse.data)[query_offset(p, p.lse, s, h, i)] =
        d.sum == 0 ? static_cast<A>(-kInfinity) : static_cast<A>(d.max + double{std::log(static_cast<A>(d.sum))});
  if (p.row_stats.data == nullptr) return;
  A* stats = static_cast<A*>(p.row_stats.data) + query_offset(p, p.row_stats, s, h, i);
  if (d.sum != d.sum) max = static_cast<A>(kNaN);
  stats[0] = max == static_cast<A>(-kInfinity) ? static_cast<A>(kInfinity) : max;
  stats[p.row_stats.stride[3]] = d.sum == 0 ? A{0} : static_cast<A>(d.scale / d.sum);
}

// Divides O by the sum, joins the sink, and writes out and lse.
template <class A>
void finish_strip(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, const StripState<A>& state) {
  constexpr int lanes = kStripLanes<A>;
  alignas(64) A factor[lanes];
  char* rows[lanes];
  const double dropped = p.dropout_p > 0 ? dropout_scale(p.dropout_p) : 1;
  for (int r = 0; r < strip.count; ++r) {
    const Denominator d = denominator(p, strip.head[r], state, r);
    // An empty row: nothing was summed, whatever its O holds is 0 or was never written.
    factor[r] = d.sum == 0 ? A{0} : static_cast<A>(d.scale * dropped / d.sum);
    write_statistics<A>(p, s, strip.head[r], strip.row[r], state.started ? state.max[r] : static_cast<A>(-kInfinity),
                        d);
  }
  for (int r = strip.count; r < lanes; ++r) factor[r] = 0;
  strip_rows(p, p.out, s, strip, rows);
  for (int r = 0; r < strip.count && state.started; ++r)
    for (int64_t d = 0; d < p.head_dim_v && factor[r] == A{0}; ++d) state.out[d * lanes + r] = 0;  // or 0 times NaN
  if (!state.started) std::memset(state.out, 0, static_cast<size_t>(p.head_dim_v * lanes) * sizeof(A));
  unpack_strip<A>(p.dtype, state.out, p.head_dim_v, factor, rows, strip.count);
}

template <class A>
void attend_block(const ForwardPlan<A>& plan, const Sequence& s, const HeadGroup& group, int64_t block, int64_t split,
                  ForwardWorkspace<A>& w) {
  constexpr int lanes = kStripLanes<A>;
  const AttentionParams& p = plan.p;
  const int64_t rows = s.len_q * group.size, first_strip = block * plan.block, first = first_strip * lanes;
  if (first >= rows) return;
  const int64_t left = (rows - first + lanes - 1) / lanes, count = left < plan.block ? left : plan.block;
  const int64_t last = first + count * lanes < rows ? first + count * lanes : rows;

  int64_t begin, end;
  key_range(p, s, group.size, first, last, &begin, &end);
  if (plan.splits > 1) {
    // Cut where the whole sequence's range is cut, at tile borders: independent of how blocks were chosen.
    int64_t all_begin, all_end;
    key_range(p, s, group.size, 0, rows, &all_begin, &all_end);
    const int64_t first_tile = all_begin / kKeyTile, tiles = (all_end + kKeyTile - 1) / kKeyTile - first_tile;
    const int64_t split_begin = (first_tile + tiles * split / plan.splits) * kKeyTile;
    const int64_t split_end = (first_tile + tiles * (split + 1) / plan.splits) * kKeyTile;
    if (begin < split_begin) begin = split_begin;
    if (end > split_end) end = split_end;
  }

  StripState<A> states[kMaxBlockRows / lanes > 0 ? kMaxBlockRows / lanes : 1];
  for (int64_t i = 0; i < count; ++i) {
    make_strip(p, s, group, first + i * lanes, &w.strip[i]);
    const Strip<A>& strip = w.strip[i];
    char* q[lanes];
    strip_rows(p, p.q, s, strip, q);
    w.operands.load_queries(i, q, strip.count);
    A* memory = w.states + i * plan.partial_size();
    if (plan.splits > 1)
      memory =
          plan.partial + (((s.batch * p.heads_kv + group.kv) * plan.strips + first_strip + i) * plan.splits + split) *
                             plan.partial_size();
    states[i] = state_at(memory, out_rows(p), false);
  }

  const KeyRows k = key_rows(p, p.k, s, group.kv), v = key_rows(p, p.v, s, group.kv);
  // Not with a backward to come: that computes the scores as tiles, and its probabilities need the very same sums.
  const bool decode = rows < kLeastRows<A> && p.row_stats.data == nullptr;
  if (decode) decode_strip(p, s, w.strip[0], k, v, begin / 4 * 4, end, w.scores, w.decode, &states[0]);
  [[maybe_unused]] const ProductScope scope;
  for (int64_t tile = begin / kKeyTile * kKeyTile; tile < end && !decode; tile += kKeyTile) {
    const int64_t lo = tile > begin ? tile : begin, hi = tile + kKeyTile < end ? tile + kKeyTile : end;
    // Started at a multiple of 4 so that a Philox counter's four keys stay together.
    const int64_t base = lo / 4 * 4;
    w.operands.load_keys(k, v, base, hi - base);
    for (int64_t i = 0; i < count; ++i) {
      const Strip<A>& strip = w.strip[i];
      const int64_t from = base + max64(0, strip.first_key - base) / kKeyStep * kKeyStep;
      const int64_t to = strip.last_key < hi ? strip.last_key : hi;
      if (from >= to) continue;
      attend_tile(p, s, w, i, base, from, to - from, &states[i]);
    }
  }

  for (int64_t i = 0; i < count; ++i) {
    if (states[i].started && may_exclude(p) &&
        !all_finite(states[i].out, lanes, p.head_dim_v, w.strip[i].vectors * Simd<A>::lanes))
      attend_pairs(p, s, w, i, k, v, begin, end, &states[i]);
    if (plan.splits == 1) {
      finish_strip(p, s, w.strip[i], states[i]);
    } else if (!states[i].started) {
      for (int r = 0; r < lanes; ++r) {
        states[i].max[r] = static_cast<A>(-kInfinity);
        states[i].sum[r] = 0;
      }
    }
  }
}

// Joins the splits of one strip, in order.
template <class A>
void merge_strip(const ForwardPlan<A>& plan, const Sequence& s, const HeadGroup& group, int64_t index) {
  constexpr int lanes = kStripLanes<A>;
  const AttentionParams& p = plan.p;
  if (index * lanes >= s.len_q * group.size) return;
  Strip<A> strip;
  make_strip(p, s, group, index * lanes, &strip);
  A* parts =
      plan.partial + ((s.batch * p.heads_kv + group.kv) * plan.strips + index) * plan.splits * plan.partial_size();
  const A scale = softmax_scale<A>(p);
  StripState<A> joint = state_at(parts, out_rows(p), false);
  for (int64_t n = 0; n < plan.splits; ++n) {
    const StripState<A> part = state_at(parts + n * plan.partial_size(), out_rows(p), true);
    bool empty = true;
    for (int r = 0; r < strip.count; ++r) empty = empty && part.sum[r] == 0;
    if (empty) continue;  // its O was never written, or is all zeros
    if (!joint.started) {
      joint = part;
      continue;
    }
    alignas(64) A keep[lanes], add[lanes];
    for (int r = 0; r < lanes; ++r) {
      const A max = joint.max[r] > part.max[r] ? joint.max[r] : part.max[r];
      const bool none = max == static_cast<A>(-kInfinity) || r >= strip.count;
      keep[r] = none ? A{0} : static_cast<A>(std::exp((joint.max[r] - max) * scale));
      add[r] = none ? A{0} : static_cast<A>(std::exp((part.max[r] - max) * scale));
      joint.max[r] = max;
      joint.sum[r] = joint.sum[r] * keep[r] + part.sum[r] * add[r];
    }
    constexpr int L = Simd<A>::lanes;
    for (int64_t d = 0; d < p.head_dim_v; ++d)
      for (int v = 0; v < strip.vectors; ++v) {
        A* o = joint.out + d * lanes + v * L;
        store(o, load(o) * load(keep + v * L) + load(part.out + d * lanes + v * L) * load(add + v * L));
      }
  }
  finish_strip(p, s, strip, joint);
}

template <class A>
int64_t choose_splits(const ForwardPlan<A>& plan, int64_t asked) {
  const AttentionParams& p = plan.p;
  const int64_t most = p.seqlen_k < kKeyTile ? 1 : p.seqlen_k / kKeyTile;
  int64_t splits = asked;
  if (asked == 0) {
    const int64_t tasks = p.batch * p.heads_kv * plan.strips, by_length = p.seqlen_k / kKeysPerSplit;
    splits = (kSplitTasks + tasks - 1) / tasks;
    if (splits > by_length) splits = by_length;
  }
  if (splits > most) splits = most;
  return splits < 1 ? 1 : splits;
}

template <class A>
Status attend_as(const AttentionParams& p, int64_t asked_splits) {
  constexpr int lanes = kStripLanes<A>;
  const int64_t groups = p.batch * p.heads_kv;
  if (groups == 0) return Status::kOk;
  ForwardPlan<A> plan{p, p.seqlen_q * (p.heads / p.heads_kv), 0, 1, 0, 1, nullptr};
  plan.strips = (plan.group_rows + lanes - 1) / lanes;
  if (plan.strips == 0) return Status::kOk;
  plan.splits = choose_splits(plan, asked_splits);
  const int threads = p.num_threads < 1 ? 1 : p.num_threads;
  // Balanced blocks, as large as the cache and the thread count allow. No result depends on the choice.
  const int64_t wanted = (threads * kTasksPerThread + groups * plan.splits - 1) / (groups * plan.splits);
  int64_t blocks = (plan.group_rows + kMaxBlockRows - 1) / kMaxBlockRows;
  if (threads > 1 && blocks < wanted) blocks = wanted < plan.strips ? wanted : plan.strips;
  plan.block = (plan.strips + blocks - 1) / blocks;
  plan.blocks = (plan.strips + plan.block - 1) / plan.block;

  Carver measure(nullptr);
  ForwardWorkspace<A> unused(p, plan.block, measure);
  const int64_t per_thread = measure.used();
  const int64_t partial = plan.splits > 1 ? groups * plan.strips * plan.splits * plan.partial_size() : 0;
  Scratch scratch(static_cast<size_t>(per_thread * threads + partial * static_cast<int64_t>(sizeof(A))));
  if (scratch.data() == nullptr) return Status::kOutOfMemory;
  plan.partial = reinterpret_cast<A*>(scratch.data() + per_thread * threads);

  // Last blocks first: under a causal mask they have the most keys.
  parallel_for(plan.blocks * groups * plan.splits, threads, [&](int64_t task, int thread) {
    Carver carver(scratch.data() + per_thread * thread);
    ForwardWorkspace<A> w(p, plan.block, carver);
    const int64_t split = task % plan.splits, group = task / plan.splits % groups;
    const int64_t block = plan.blocks - 1 - task / plan.splits / groups;
    attend_block(plan, sequence_of(p, group / p.heads_kv), group_of(p, group % p.heads_kv), block, split, w);
  });
  if (plan.splits == 1) return Status::kOk;
  parallel_for(groups * plan.strips, threads_for(partial, threads), [&](int64_t task, int) {
    const int64_t group = task / plan.strips;
    merge_strip(plan, sequence_of(p, group / p.heads_kv), group_of(p, group % p.heads_kv), task % plan.strips);
  });
  return Status::kOk;
}

}  // namespace

Status attend(const AttentionParams& p, int64_t splits) {
#if !defined(TW_TILES)
  if (p.dtype == DType::kFloat64) return attend_as<double>(p, splits);
#endif
  return attend_as<float>(p, splits);
}

Status attention_forward(const AttentionParams& p) {
  const Status status = check_attention(p);
  return status == Status::kOk ? attend(p, 0) : status;
}

}  // namespace TW_ISA
}  // namespace tilewright
