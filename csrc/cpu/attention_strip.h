// A strip of query rows, one per vector lane, and what happens to its tile of scores between the two products.
#pragma once

#include <type_traits>

#include "../common/philox.h"
#include "attention_call.h"

namespace tilewright {
namespace TW_ISA {

constexpr double kInfinity = __builtin_inf(), kNaN = __builtin_nan("");

template <class A>
struct Strip {
  static constexpr int kLanes = kStripLanes<A>;
  using Int = typename Simd<A>::mask;
  using Element = typename std::decay<decltype(Int{}[0])>::type;

  int count;    // lanes in use
  int vectors;  // vectors in use
  // Lane r attends to keys [lo[r], hi[r]): the sequence's end, the causal diagonal and the window in one interval.
  alignas(64) Element lo[kLanes];
  alignas(64) Element hi[kLanes];
  alignas(64) Element position[kLanes];  // i + shift
  alignas(64) A slope[kLanes];
  int64_t row[kLanes], head[kLanes];
  int64_t first_key, last_key;                // keys that some lane attends to
  int64_t first_shared_key, last_shared_key;  // keys that all lanes attend to, as far as intervals go
};

// The keys that position i of the sequence may see: [*lo, *hi), empty as lo == hi.
inline void key_interval(const AttentionParams& p, const Sequence& s, int64_t i, int64_t* lo, int64_t* hi) {
  const int64_t at = i + s.shift;
  int64_t begin = 0, end = s.len_k;
  if (p.causal != Causal::kNone && at + 1 < end) end = at + 1;
  if (p.window_right >= 0 && at + p.window_right + 1 < end) end = at + p.window_right + 1;
  if (p.window_left >= 0 && at - p.window_left > begin) begin = at - p.window_left;
  if (begin >= end) begin = end = 0;
  *lo = begin;
  *hi = end;
}

// Rows [first, first + count) of the group's enumeration.
template <class A>
TW_NOINLINE void make_strip(const AttentionParams& p, const Sequence& s, const HeadGroup& group, int64_t first,
                            Strip<A>* strip) {
  const int64_t rows = s.len_q * group.size - first;
  strip->count = static_cast<int>(rows < Strip<A>::kLanes ? rows : Strip<A>::kLanes);
  strip->vectors = (strip->count + Simd<A>::lanes - 1) / Simd<A>::lanes;
  strip->first_key = strip->first_shared_key = 0;
  strip->last_key = strip->last_shared_key = 0;
  int64_t i = first / group.size, head = first % group.size;
  for (int r = 0; r < Strip<A>::kLanes; ++r) {
    const bool used = r < strip->count;
    int64_t lo = 0, hi = 0;
    if (used) key_interval(p, s, i, &lo, &hi);
    strip->row[r] = used ? i : 0;
    strip->head[r] = group.first + (used ? head : 0);
    strip->position[r] = static_cast<typename Strip<A>::Element>(strip->row[r] + s.shift);
    strip->lo[r] = static_cast<typename Strip<A>::Element>(lo);
    strip->hi[r] = static_cast<typename Strip<A>::Element>(hi);
    strip->slope[r] = 0;
    if (p.alibi_slopes.data != nullptr)
      strip->slope[r] = static_cast<const float*>(
          p.alibi_slopes.data)[s.batch * p.alibi_slopes.stride[0] + strip->head[r] * p.alibi_slopes.stride[1]];
    if (!used) continue;
    if (lo < hi && (strip->first_key == strip->last_key || lo < strip->first_key)) strip->first_key = lo;
    if (hi > strip->last_key) strip->last_key = hi;
    if (r == 0 || lo > strip->first_shared_key) strip->first_shared_key = lo;
    if (r == 0 || hi < strip->last_shared_key) strip->last_shared_key = hi;
    if (++head == group.size) {
      head = 0;
      ++i;
    }
  }
}

// rows[r] = where row r of the strip is in `view`: of q, out or a gradient of theirs.
template <class A>
TW_NOINLINE void strip_rows(const AttentionParams& p, const View4& view, const Sequence& s, const Strip<A>& strip,
                            char** rows) {
  for (int r = 0; r < strip.count; ++r) rows[r] = query_row(p, view, s, strip.head[r], strip.row[r]);
}

// --- masks -----------------------------------------------------------------------------------------------------------

struct MaskBool {
  uint8_t keep;
};
template <class A>
TW_INLINE A mask_value(MaskBool m) {
  return m.keep != 0 ? A{0} : static_cast<A>(-kInfinity);
}
template <class A, class M>
TW_INLINE A mask_value(M m) {
  return static_cast<A>(to_float(m));
}

// L consecutive mask values along the keys, of which the first n exist.
template <class A, class M>
TW_INLINE Vec<A> load_mask_vector(const M* m, int n) {
  constexpr int L = Simd<A>::lanes;
  if constexpr (std::is_same<M, MaskBool>::value) {
    if (n == L) {
      typename Simd<A>::bytes bytes;
      std::memcpy(&bytes, m, sizeof bytes);
      const auto keep = __builtin_convertvector(bytes, typename Simd<A>::mask);
      return keep != 0 ? Vec<A>{} : broadcast<A>(static_cast<A>(-kInfinity));
    }
  } else if constexpr (sizeof(Accumulator<M>) == sizeof(A)) {
    return n == L ? load(m) : load_partial(m, n);
  }
  Vec<A> v{};
  for (int i = 0; i < n; ++i) v[i] = mask_value<A>(m[i]);
  return v;
}

template <class A, class M>
void load_mask_as(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, int64_t key, int64_t n, A* dst) {
  constexpr int L = Simd<A>::lanes, lanes = Strip<A>::kLanes;
  const int64_t step = p.mask.stride[3];
  const auto row_of = [&](int r) {
    return static_cast<const M*>(p.mask.data) + s.batch * p.mask.stride[0] + strip.head[r] * p.mask.stride[1] +
           strip.row[r] * p.mask.stride[2] + key * step;
  };
  const M* first = row_of(0);
  bool shared = true;
  for (int r = 1; r < strip.count; ++r) shared = shared && row_of(r) == first;
  for (int base = 0; base < strip.vectors * L; base += L) {
    if (shared) {  // one value per key, as padding masks have
      for (int64_t j = 0; j < n; ++j) store(dst + j * lanes + base, broadcast<A>(mask_value<A>(first[j * step])));
    } else if (step == 1) {
      for (int64_t j = 0; j < n; j += L) {
        const int width = static_cast<int>(n - j < L ? n - j : L);
        Vec<A> block[L];
        for (int i = 0; i < L; ++i)
          block[i] = base + i < strip.count ? load_mask_vector<A>(row_of(base + i) + j, width) : Vec<A>{};
        transpose<A>(block);
        for (int i = 0; i < width; ++i) store(dst + (j + i) * lanes + base, block[i]);
      }
    } else {
      for (int i = 0; i < L; ++i) {
        const M* row = row_of(base + i < strip.count ? base + i : 0);
        for (int64_t j = 0; j < n; ++j) dst[j * lanes + base + i] = mask_value<A>(row[j * step]);
      }
    }
  }
}

// dst [n][lanes]: what the mask adds to the scores of keys [key, key + n).
template <class A>
void load_mask(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, int64_t key, int64_t n, A* dst) {
  switch (p.mask_dtype) {
    case DType::kBool: return load_mask_as<A, MaskBool>(p, s, strip, key, n, dst);
    case DType::kFloat32: return load_mask_as<A, float>(p, s, strip, key, n, dst);
    case DType::kFloat64:
      if constexpr (sizeof(A) == 8) load_mask_as<A, double>(p, s, strip, key, n, dst);
      return;
    case DType::kFloat16:
      if constexpr (sizeof(A) == 4) load_mask_as<A, Half>(p, s, strip, key, n, dst);
      return;
    case DType::kBFloat16:
      if constexpr (sizeof(A) == 4) load_mask_as<A, BFloat16>(p, s, strip, key, n, dst);
      return;
  }
}

// --- scores ----------------------------------------------------------------------------------------------------------

// tanh to about one unit in the last place, and its derivative 1 - tanh^2, to a few units also where tanh is close to 1
// or -1 and the difference would cancel.
template <class V>
struct Tanh {
  V value, derivative;
};
TW_INLINE Tanh<vfloat> softcap_tanh(vfloat x) {
  const vfloat x2 = x * x, size = x < 0.0f ? -x : x;
  vfloat p = broadcast<float>(
      -5.7049869e-3f);  // minimax fit of (tanh(x) - x) / x^3 over |x| < 0.625; beyond, 1 - 2 / (e^2x + 1)
  p = p * x2 + 2.0639086e-2f;
  p = p * x2 - 5.3739715e-2f;
  p = p * x2 + 1.3331442e-1f;
  p = p * x2 - 3.3333281e-1f;
  const vfloat small = x + x * x2 * p;
  const vfloat gap = 2.0f / (vexp(2.0f * size) + 1.0f), large = x < 0.0f ? gap - 1.0f : 1.0f - gap;
  const auto near_zero = x2 < 0.390625f;
  return {near_zero ? small : large, near_zero ? 1.0f - small * small : gap * (2.0f - gap)};
}
TW_INLINE Tanh<vdouble> softcap_tanh(vdouble x) {
  Tanh<vdouble> t{};
  for (int i = 0; i < kDoubleLanes; ++i) {
    const double gap = 2.0 / (std::exp(2.0 * std::abs(x[i])) + 1.0);
    t.value[i] = std::tanh(x[i]);
    t.derivative[i] = gap * (2.0 - gap);
  }
  return t;
}

// The depth of the products' blocks; for the scores it must be the same in the forward and the backward pass. Of few scores
// the product's speed matters less than that lse may be the rounding of one of them, which a BLAS adds up as a dot product.
constexpr int64_t kFewScores = 256 * 256;
template <class A>
int64_t score_block(const AttentionParams& p) {
  const int64_t rows = p.seqlen_q * (p.heads / p.heads_kv);
  if (rows <= kStripLanes<A>) return kDotBlock;
  return rows * p.seqlen_k <= kFewScores ? kShortBlock : kDepthBlock;
}

// A head this narrow takes little time whatever is done; its products are matrices by vectors, which a BLAS adds up as dot
// products, and its weights lean on each of its dims, so that dQ and dK show rounding that averages out elsewhere.
inline bool is_narrow(const AttentionParams& p) { return p.head_dim <= 8; }
inline int64_t gradient_block(const AttentionParams& p) { return is_narrow(p) ? kDotBlock : kDepthBlock; }

// Scores come out of the product as q . k with Q packed as given but for the sign: rounding scale * q first would cost the
// exact products of half precision. What is left to multiply by joins the softmax's exponential, or, where something is
// added to the scores or caps them, finish_scores.
// Whether some pairs may have no part in the sums.
inline bool may_exclude(const AttentionParams& p) {
  return p.mask.data != nullptr || p.causal != Causal::kNone || p.window_left >= 0 || p.window_right >= 0 ||
         p.dropout_p > 0;
}
inline bool plain_scores(const AttentionParams& p) {
  return p.mask.data == nullptr && p.alibi_slopes.data == nullptr && p.softcap <= 0;
}
template <class A>
A packed_scale(const AttentionParams& p) {
  return static_cast<A>(p.scale > 0 ? 1 : p.scale < 0 ? -1 : 0);
}
template <class A>
A score_scale(const AttentionParams& p) {
  return static_cast<A>(p.scale != 0 ? std::abs(p.scale) : 1);
}
template <class A>
A softmax_scale(const AttentionParams& p) {
  return plain_scores(p) ? score_scale<A>(p) : A{1};
}

// s [n][ld]: q . k of keys [key, key + n) on entry; on return the logits divided by softmax_scale (excluded keys: -inf).
// `mask` is load_mask's tile; `dcap`, when not null, receives the derivative of the cap for the backward pass. An interval is
// applied only if it cuts the tile.
template <class A>
void finish_scores(const AttentionParams& p, const Strip<A>& strip, int64_t key, int64_t n, A* s, int64_t ld,
                   const A* mask, A* dcap) {
  using Int = typename Strip<A>::Int;
  constexpr int L = Simd<A>::lanes;
  const bool cut = key < strip.first_shared_key || key + n > strip.last_shared_key;
  const bool alibi = p.alibi_slopes.data != nullptr, cap = p.softcap > 0;
  const bool plain = plain_scores(p);
  if (!cut && plain) return;
  const A scale = score_scale<A>(p);
  const A softcap = static_cast<A>(p.softcap), inverse = static_cast<A>(cap ? 1 / p.softcap : 0);
  const Vec<A> excluded = broadcast<A>(static_cast<A>(-kInfinity));
  for (int v = 0; v < strip.vectors; ++v) {
    Int lo, hi, position;
    std::memcpy(&lo, strip.lo + v * L, sizeof lo);
    std::memcpy(&hi, strip.hi + v * L, sizeof hi);
    std::memcpy(&position, strip.position + v * L, sizeof position);
    const Vec<A> slope = load(strip.slope + v * L);
    for (int64_t j = 0; j < n; ++j) {
      Vec<A> x = load(s + j * ld + v * L);
      const Int at = Int{} + static_cast<typename Strip<A>::Element>(key + j);
      if (!plain) x *= scale;
      if (cap) {
        const Tanh<Vec<A>> t = softcap_tanh(x * inverse);
        if (dcap != nullptr) store(dcap + j * ld + v * L, t.derivative);
        x = t.value * softcap;
      }
      if (alibi) {
        const Int distance = position - at;
        x -= slope * __builtin_convertvector(distance < 0 ? -distance : distance, Vec<A>);
      }
      if (mask != nullptr) {
        const Vec<A> added = load(mask + j * Strip<A>::kLanes + v * L);
        x = added == excluded ? excluded : x + added;  // whatever x is, NaN as well
      }
      if (cut) x = (at >= lo) & (at < hi) ? x : excluded;
      store(s + j * ld + v * L, x);
    }
  }
}

template <class A>
A sink_of(const AttentionParams& p, int64_t head) {
  const int64_t at = head * p.sinks.stride[0];
  if (p.sinks_dtype == DType::kFloat32) return static_cast<A>(static_cast<const float*>(p.sinks.data)[at]);
  A value = 0;
  with_dtype<A>(p.sinks_dtype, [&](auto t) { value = to_float(static_cast<const decltype(t)*>(p.sinks.data)[at]); });
  return value;
}

// --- dropout ---------------------------------------------------------------------------------------------------------

TW_INLINE void multiply_wide(vuint a, uint32_t b, vuint* high, vuint* low) {
#if defined(__AVX2__) && TW_VECTOR_BYTES == 32
  const __m256i x = (__m256i)a, y = _mm256_set1_epi32(static_cast<int>(b));
  const __m256i even = _mm256_mul_epu32(x, y), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
  *high = (vuint)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  *low = (vuint)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#elif defined(__AVX512F__) && TW_VECTOR_BYTES == 64
  const __m512i x = (__m512i)a, y = _mm512_set1_epi32(static_cast<int>(b));
  const __m512i even = _mm512_mul_epu32(x, y), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
  *high = (vuint)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
  *low = (vuint)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
#else
  for (int i = 0; i < kFloatLanes; ++i) {
    const uint64_t product = uint64_t{a[i]} * b;
    (*high)[i] = static_cast<uint32_t>(product >> 32);
    (*low)[i] = static_cast<uint32_t>(product);
  }
#endif
}

// bits [n][lanes]: the random bits of keys [key, key + n); key is a multiple of 4. One counter, its lanes being rows,
// yields four keys.
template <class A>
void dropout_bits(const AttentionParams& p, const Sequence& s, const Strip<A>& strip, int64_t key, int64_t n,
                  uint32_t* bits) {
  constexpr int lanes = Strip<A>::kLanes;
  alignas(64) uint32_t rows[lanes], planes[lanes];
  for (int r = 0; r < lanes; ++r) {
    rows[r] = static_cast<uint32_t>(strip.row[r]);
    planes[r] = static_cast<uint32_t>(s.batch * p.heads + strip.head[r]);
  }
  const uint64_t seed = static_cast<uint64_t>(p.rng[0]);
  const uint32_t offset = static_cast<uint32_t>(p.rng[1]);
  static_assert(lanes % kFloatLanes == 0, "a strip is a whole number of counter vectors");
  for (int base = 0; base < lanes; base += kFloatLanes) {
    vuint row, plane;
    std::memcpy(&row, rows + base, sizeof row);
    std::memcpy(&plane, planes + base, sizeof plane);
    for (int64_t j = 0; j < n; j += 4) {
      vuint c0 = vuint{} + static_cast<uint32_t>((key + j) / 4), c1 = row, c2 = plane, c3 = vuint{} + offset;
      uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
      for (int round = 0; round < 10; ++round) {
        vuint high0, low0, high1, low1;
        multiply_wide(c0, 0xD2511F53u, &high0, &low0);
        multiply_wide(c2, 0xCD9E8D57u, &high1, &low1);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
      }
      const vuint words[4] = {c0, c1, c2, c3};
      for (int64_t i = 0; i < 4 && j + i < n; ++i) std::memcpy(bits + (j + i) * lanes + base, &words[i], sizeof(vuint));
    }
  }
}

// 1 where the element is kept, 0 where it is dropped.
TW_INLINE vfloat kept(const uint32_t* bits, uint32_t threshold, vfloat x) {
  vuint b;
  std::memcpy(&b, bits, sizeof b);
  return b >= threshold ? x : vfloat{};
}
TW_INLINE vdouble kept(const uint32_t* bits, uint32_t threshold, vdouble x) {
  for (int i = 0; i < kDoubleLanes; ++i) x[i] = bits[i] >= threshold ? x[i] : 0;
  return x;
}

}  // namespace TW_ISA
}  // namespace tilewright
