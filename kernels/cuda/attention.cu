// Attention over paged keys and values (recipes K9 and K10): softmax(q k) v of tiles of rows, exact to the contract
// (NUMERICS.md), whatever the tiles are.
//
// Method. A block of threads has a tile: consecutive rows of one span and the query heads that share a KV head, so that what it
// loads serves all of them. Keys and values stream through shared memory by asynchronous copies, in items of 16 KiB, at least one
// of which is under way while another is worked on. Chunk by chunk: scores, where a lane has two positions, four KV blocks a warp;
// weights by shuffles among the eight lanes of a KV block; sums of values, where a lane has dimensions. The order of every sum is
// the contract's: a lane adds up what it has, one after the other. One value from shared memory serves all queries of a warp.
//   narrow  up to 8 queries, whose 4 warps share out positions and then dimensions: decode, and short spans. A chunk is a split.
//   wide    16 to 64 queries, shared out among 8 warps: prefill. A chunk is four KV blocks.
// Masks are looked at where a score is made, and at values only in KV blocks that some query sees in part.
// A tile either goes through its splits in order and joins them as it goes, or leaves the sums of one split for
// `cuckoo_attention_join`: src/cuda/attention.rs decides, and no bit depends on it.
//
// Minimum bytes: each tile's keys and values once (2 dim values a position), queries and results once. Parts: 8 (dim + 4) bytes a
// row, query head and split. FLOPs: 4 dim for each query head, row and position that it sees.
//
// What it can reach. Every product is rounded in f32 in the contract's order, which tensor cores do not do, so the ceiling is the
// f32 rate (H200: 67 TFLOP/s). What limits is how many instructions a multiprocessor issues. Of 8 queries a warp and 128 dimensions,
// as nvcc makes them for sm_90a: 256 fma of 349 instructions for scores (32 loads of queries, 16 of keys, 32 conversions), 64 of 93
// for values, and about a twentieth for softmax: two thirds of the f32 peak at most, which is prefill's limit. Decode does one fma
// for each query head and value: with up to 4 query heads for a KV head memory is the limit on an H200, with 8 both are about equal.
//
// Sources: FlashAttention-2 (Dao, arXiv 2307.08691) for tiles over running softmax, Flash-Decoding for splits; the order is our own.
#include "kv.cuh"
#include "math.cuh"
#include "ptx.cuh"
#include "rounding.cuh"

namespace attention {

constexpr unsigned SPLIT = 256;
constexpr unsigned NO_PART = ~0u;
constexpr unsigned PAIRS = KV_BLOCK / 2;  // lanes that have the scores of a KV block
constexpr unsigned SLOT_BYTES = 16896;    // see KEY_STRIDE

template <KvKind KIND, unsigned QUERIES_, unsigned TEAMS, unsigned WARPS_, unsigned WIDTH_, unsigned UNITS_, unsigned SLOTS_>
struct Shape {
  using Stored = Kept<KIND>;
  static constexpr unsigned QUERIES = QUERIES_;              // of a team, each with its sums in all of the team's warps
  static constexpr unsigned ALL_QUERIES = TEAMS * QUERIES_;  // of the block of threads
  static constexpr unsigned WARPS = WARPS_;                  // of a team: each has some positions, then some dimensions
  static constexpr unsigned THREADS = TEAMS * WARPS * WARP;
  static constexpr unsigned WIDTH = WIDTH_;                  // neighbouring dimensions of a lane
  static constexpr unsigned UNITS = UNITS_;                  // so often, at most
  static constexpr unsigned UNIT_DIMS = WIDTH * WARP;
  static constexpr unsigned DIMS = UNITS * UNIT_DIMS * WARPS;
  static constexpr unsigned CHUNK = WARPS * WARP / PAIRS;    // KV blocks whose scores are made together
  static constexpr unsigned KEY_DIMS = 128 / WARPS;          // dimensions of keys in an item
  // Bytes from one KV block's keys to the next: 16 values more than there are, so that the four of a warp are in different banks.
  static constexpr unsigned KEY_STRIDE = (KEY_DIMS + 1) * KV_BLOCK * Stored::BYTES;
  static constexpr unsigned KEY_SCALES = CHUNK * KEY_STRIDE;
  static constexpr unsigned KEY_SCALES_STRIDE = Stored::SCALED ? KEY_DIMS / 16 * KV_BLOCK * 2 : 0;
  static constexpr unsigned SLOTS = SLOTS_;
  static_assert(KEY_SCALES + CHUNK * KEY_SCALES_STRIDE <= SLOT_BYTES, "an item of keys fits a slot");
};

struct Range {
  unsigned begin, end;
};

// The positions that a row of a tile sees.
__device__ __forceinline__ Range seen(const cuckoo_attention& a, const cuckoo_tile& tile, unsigned row) {
  const unsigned past = tile.position + row + 1;
  return {a.window == 0 || past <= a.window ? 0 : past - a.window, a.causal ? past : tile.span_end};
}

// Where a block of threads is in the stream of what it loads.
struct Cursor {
  unsigned chunk;  // its first KV block, in the sequence
  unsigned item;   // of the chunk: keys by dimensions, then values by KV blocks
};

template <class S>
struct Tile {
  const cuckoo_attention& a;
  cuckoo_tile tile;
  unsigned kv_head, first_head, heads, queries_here;
  unsigned first_block, end_block;  // KV blocks that some row sees of these splits
  unsigned lane, team, member;       // which warp of the team
  // Shared memory.
  unsigned char* slots;  // [SLOTS][SLOT_BYTES]
  float* queries;        // [ALL_QUERIES][stride()]
  float* weights;        // [ALL_QUERIES][CHUNK][16]
  float* highest;        // [ALL_QUERIES][CHUNK]: scores
  float* rescale;        // [ALL_QUERIES][CHUNK]: what sums of values before a KV block are multiplied by
  float* totals;         // [ALL_QUERIES][CHUNK]: of the weights of a KV block
  float4* softmax;       // [QUERIES] for this warp: highest score and total of the splits before, and of this one
  Range* sees;           // [ALL_QUERIES]
  unsigned* places;      // [ALL_QUERIES]: row of the tile times query heads, and the query head
  // Registers.
  Range whole;                          // what all queries of the team see
  float sums[S::QUERIES][S::UNITS][S::WIDTH];
  Cursor loads;                         // what is to be loaded next
  unsigned newest, ahead;               // the slot it goes to; items that were begun before any was worked on
  unsigned dims[S::UNITS];              // the lane's; where it would have more than there are, the last

  __device__ __forceinline__ Tile(const cuckoo_attention& a, unsigned char* memory)
      : a(a), tile(at<const cuckoo_tile>(a.tiles)[blockIdx.x]) {
    const unsigned group = a.query_heads / a.kv.kv_heads, parts = (group + a.heads_each - 1) / a.heads_each;
    const unsigned first = blockIdx.y % parts * a.heads_each;
    kv_head = blockIdx.y / parts;
    first_head = kv_head * group + first;
    heads = group - first < a.heads_each ? group - first : a.heads_each;
    queries_here = tile.rows * heads;
    const unsigned begin = seen(a, tile, 0).begin, end = seen(a, tile, tile.rows - 1).end;
    first_block = (begin > tile.split * SPLIT ? begin : tile.split * SPLIT) / KV_BLOCK;
    end_block = ((end < tile.split_end * SPLIT ? end : tile.split_end * SPLIT) + KV_BLOCK - 1) / KV_BLOCK;
    const unsigned dim = a.kv.dim;
    lane = threadIdx.x % WARP;
    team = threadIdx.x / WARP / S::WARPS;
    member = threadIdx.x / WARP % S::WARPS;
    slots = memory;
    queries = reinterpret_cast<float*>(slots + S::SLOTS * SLOT_BYTES);
    weights = queries + S::ALL_QUERIES * stride();
    highest = weights + S::ALL_QUERIES * S::CHUNK * KV_BLOCK;
    rescale = highest + S::ALL_QUERIES * S::CHUNK;
    totals = rescale + S::ALL_QUERIES * S::CHUNK;
    float4* const all = reinterpret_cast<float4*>(totals + S::ALL_QUERIES * S::CHUNK);
    softmax = all + threadIdx.x / WARP * S::QUERIES;
    sees = reinterpret_cast<Range*>(all + S::ALL_QUERIES * S::WARPS);
    places = reinterpret_cast<unsigned*>(sees + S::ALL_QUERIES);
#pragma unroll
    for (unsigned i = 0; i < S::UNITS; i++) {
      const unsigned d = first_dim(i) + lane * S::WIDTH;
      dims[i] = d < dim ? d : dim - S::WIDTH;
    }
  }

  // Of the lanes of this warp, the `i`th time.
  __device__ __forceinline__ unsigned first_dim(unsigned i) const { return (i * S::WARPS + member) * S::UNIT_DIMS; }
  // Values from one query to the next in shared memory; where registers are short it is known before.
  __device__ __forceinline__ unsigned stride() const { return S::WARPS == 1 ? S::DIMS : a.kv.dim; }
  __device__ __forceinline__ unsigned count() const { return queries_here; }
  __device__ __forceinline__ unsigned query(unsigned r) const { return team * S::QUERIES + r; }
  __device__ __forceinline__ unsigned row(unsigned query) const { return query / heads; }
  __device__ __forceinline__ unsigned head(unsigned query) const { return first_head + query % heads; }
  __device__ __forceinline__ unsigned from(unsigned chunk) const { return chunk > first_block ? chunk : first_block; }
  __device__ __forceinline__ unsigned to(unsigned chunk) const {
    return chunk + S::CHUNK < end_block ? chunk + S::CHUNK : end_block;
  }

  // All threads of a team.
  __device__ __forceinline__ void meet() const {
    if constexpr (S::WARPS == 1) __syncwarp();
    else __syncthreads();
  }

  // Queries and what they see to shared memory; those that are too many see nothing.
  __device__ __forceinline__ void prepare() {
    const unsigned dim = a.kv.dim, pieces = dim / 4, row_heads = a.query_heads + 2 * a.kv.kv_heads;
    for (unsigned q = threadIdx.x; q < S::ALL_QUERIES; q += S::THREADS) {
      sees[q] = q < count() ? seen(a, tile, row(q)) : Range{0, 0};
      places[q] = row(q) * a.query_heads + head(q);
    }
    for (unsigned i = threadIdx.x; i < S::ALL_QUERIES * pieces; i += S::THREADS) {
      const unsigned q = i / pieces, piece = i % pieces;
      float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (q < count()) {
        const uint64_t begin = (uint64_t(tile.first_row + row(q)) * row_heads + head(q)) * dim;
        v = at<const float4>(a.qkv)[begin / 4 + piece];
      }
      reinterpret_cast<float4*>(queries + q * stride())[piece] = v;
    }
    __syncthreads();
    whole = {0, ~0u};
    for (unsigned r = 0; r < S::QUERIES && query(r) < count(); r++) {
      const Range s = sees[query(r)];
      whole = {s.begin > whole.begin ? s.begin : whole.begin, s.end < whole.end ? s.end : whole.end};
    }
    const unsigned mine = query(lane);
    const bool sink = a.sinks != 0 && lane < S::QUERIES && mine < count();
    const float of_sink = sink ? at<const float>(a.sinks)[head(mine)] : -INFINITY;
    if (lane < S::QUERIES) softmax[lane] = make_float4(of_sink, sink ? 1.0f : 0.0f, 0.0f, 0.0f);
    loads = {first_block / S::CHUNK * S::CHUNK, 0};
    newest = ahead = 0;
    forget();
  }

  // Begins a split.
  __device__ __forceinline__ void forget() {
    if (lane < S::QUERIES) {
      softmax[lane].z = -INFINITY;
      softmax[lane].w = 0.0f;
    }
#pragma unroll
    for (unsigned r = 0; r < S::QUERIES; r++) {
#pragma unroll
      for (unsigned i = 0; i < S::UNITS; i++) {
#pragma unroll
        for (unsigned e = 0; e < S::WIDTH; e++) sums[r][i][e] = 0.0f;
      }
    }
  }

  // KV blocks in an item of values.
  __device__ __forceinline__ unsigned value_blocks() const {
    const unsigned scales = S::Stored::SCALED ? a.kv.dim / a.kv.scale_block * KV_BLOCK * 2 : 0;
    return SLOT_BYTES / (a.kv.dim * KV_BLOCK * S::Stored::BYTES + scales);
  }
  // Items of a chunk.
  __device__ __forceinline__ unsigned key_items() const {
    return S::DIMS <= S::KEY_DIMS ? 1 : (a.kv.dim + S::KEY_DIMS - 1) / S::KEY_DIMS;
  }
  __device__ __forceinline__ unsigned value_items(unsigned chunk) const {
    return (to(chunk) - from(chunk) + value_blocks() - 1) / value_blocks();
  }

  __device__ __forceinline__ void advance(Cursor& c) const {
    if (++c.item < key_items() + value_items(c.chunk)) return;
    c.item = 0;
    c.chunk += S::CHUNK;
  }

  // `pieces` times 16 bytes of each of `count` KV blocks, which begin at `source(block)` and `stride` bytes apart.
  template <class Source>
  __device__ __forceinline__ void copy(unsigned char* to, unsigned stride, unsigned pieces, unsigned count, Source source) const {
    unsigned block = 0, piece = threadIdx.x;
    for (;; piece += S::THREADS) {
#pragma unroll 1
      for (; piece >= pieces; piece -= pieces) block++;
      if (block >= count) return;
      cp_async<16>(to + block * stride + piece * 16, source(block) + piece * 16);
    }
  }

  // Begins to load an item.
  __device__ __forceinline__ void fetch(const Cursor& c, unsigned char* slot) const {
    using Stored = typename S::Stored;
    const cuckoo_kv& kv = a.kv;
    const unsigned dim = kv.dim;
    const uint32_t* const table = at<const uint32_t>(a.blocks) + tile.first_block;
    const unsigned first = from(c.chunk), last = to(c.chunk);
    if (c.item < key_items()) {
      const unsigned d = c.item * S::KEY_DIMS, left = dim - d, dims = left < S::KEY_DIMS ? left : S::KEY_DIMS;
      copy(slot + (first - c.chunk) * S::KEY_STRIDE, S::KEY_STRIDE, dims * Stored::BYTES, last - first, [&](unsigned b) {
        return at<const unsigned char>(kv.keys) + (head_of(kv, table[first + b], kv_head) + d * KV_BLOCK) * Stored::BYTES;
      });
      if constexpr (Stored::SCALED) {
        unsigned char* const scales = slot + S::KEY_SCALES + (first - c.chunk) * S::KEY_SCALES_STRIDE;
        copy(scales, S::KEY_SCALES_STRIDE, dims / kv.scale_block * 2, last - first, [&](unsigned b) {
          const uint64_t begin = head_of(kv, table[first + b], kv_head) + d * KV_BLOCK;
          return at<const unsigned char>(kv.key_scales) + begin / kv.scale_block * 2;
        });
      }
      return;
    }
    const unsigned begin = first + (c.item - key_items()) * value_blocks();
    const unsigned left = last - begin, blocks = left < value_blocks() ? left : value_blocks();
    const unsigned bytes = dim * KV_BLOCK * Stored::BYTES;
    copy(slot, bytes, bytes / 16, blocks, [&](unsigned b) {
      return at<const unsigned char>(kv.values) + head_of(kv, table[begin + b], kv_head) * Stored::BYTES;
    });
    if constexpr (Stored::SCALED) {
      const unsigned scales = dim / kv.scale_block * KV_BLOCK * 2;
      copy(slot + value_blocks() * bytes, scales, scales / 16, blocks, [&](unsigned b) {
        return at<const unsigned char>(kv.value_scales) + head_of(kv, table[begin + b], kv_head) / kv.scale_block * 2;
      });
    }
  }

  // Adds some dimensions to the products of queries and keys: two positions of a lane.
  __device__ __forceinline__ void multiply(unsigned chunk, unsigned item, const unsigned char* slot,
                                           float (&dots)[S::QUERIES][2]) const {
    using Stored = typename S::Stored;
    const unsigned block = member * (WARP / PAIRS) + lane / PAIRS, pair = lane % PAIRS;
    const unsigned first = chunk + member * (WARP / PAIRS);
    if (first >= end_block || first + WARP / PAIRS <= first_block || query(0) >= count()) return;
    const unsigned d = item * S::KEY_DIMS, left = a.kv.dim - d, dims = left < S::KEY_DIMS ? left : S::KEY_DIMS;
    const unsigned char* const keys = slot + block * S::KEY_STRIDE + pair * 2 * Stored::BYTES;
    const float* const q = queries + query(0) * stride() + d;
    for (unsigned i = 0; i < dims; i += KV_BLOCK) {
      float2 scale = make_float2(1.0f, 1.0f);
      if constexpr (Stored::SCALED) {
        const unsigned char* const scales = slot + S::KEY_SCALES + block * S::KEY_SCALES_STRIDE;
        scale = Kept<KV_F16>::two(scales + i / a.kv.scale_block * KV_BLOCK * 2 + pair * 4);
      }
#pragma unroll
      for (unsigned j = 0; j < KV_BLOCK; j += 4) {
        float2 k[4];
#pragma unroll
        for (unsigned e = 0; e < 4; e++) {
          k[e] = Stored::two(keys + (i + j + e) * KV_BLOCK * Stored::BYTES);
          if constexpr (Stored::SCALED) k[e] = make_float2(scale.x * k[e].x, scale.y * k[e].y);
        }
#pragma unroll
        for (unsigned r = 0; r < S::QUERIES; r++) {
          const float4 v = *reinterpret_cast<const float4*>(q + r * stride() + i + j);
          const float each[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (unsigned e = 0; e < 4; e++) {
            dots[r][0] = fmaf(each[e], k[e].x, dots[r][0]);
            dots[r][1] = fmaf(each[e], k[e].y, dots[r][1]);
          }
        }
      }
    }
  }

  // Scores of a chunk to weights, where every KV block has the highest score up to it.
  __device__ __forceinline__ void weigh(unsigned chunk, float (&dots)[S::QUERIES][2]) {
    if (query(0) >= count()) return;
    const unsigned block = member * (WARP / PAIRS) + lane / PAIRS, pair = lane % PAIRS;
    const unsigned begin = (chunk + block) * KV_BLOCK, position = begin + 2 * pair;
#pragma unroll
    for (unsigned r = 0; r < S::QUERIES; r++) {
      const Range s = sees[query(r)];
      float h = -INFINITY;
#pragma unroll
      for (unsigned e = 0; e < 2; e++) {
        const bool inside = position + e >= s.begin && position + e < s.end;
        dots[r][e] = inside ? capped(dots[r][e] * a.scale, a.softcap) : -INFINITY;
        h = dots[r][e] > h ? dots[r][e] : h;
      }
#pragma unroll
      for (unsigned apart = PAIRS / 2; apart > 0; apart /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, h, apart);
        h = other > h ? other : h;
      }
      if (pair == 0) highest[query(r) * S::CHUNK + block] = h;
    }
    meet();
#pragma unroll
    for (unsigned r = 0; r < S::QUERIES; r++) {
      const Range s = sees[query(r)];
      const unsigned place = query(r) * S::CHUNK;
      float before = softmax[r].z, all = before;
#pragma unroll 4
      for (unsigned b = 0; b < S::CHUNK; b++) {
        const float h = highest[place + b];
        all = h > all ? h : all;
        if (b < block) before = all;
      }
      const float here = highest[place + block], now = here > before ? here : before;
      // Where nothing of a block is seen, nothing changes.
      const bool any = s.begin < begin + KV_BLOCK && s.end > begin;
      const float v = exp_exact(dots[r][0] + -now), w = exp_exact(dots[r][1] + -now);
      reinterpret_cast<float2*>(weights)[(place + block) * PAIRS + pair] = make_float2(v, w);
      float folded[2] = {v, w};
#pragma unroll
      for (unsigned apart = PAIRS / 2; apart > 0; apart /= 2) {
        folded[0] += __shfl_xor_sync(ALL_LANES, folded[0], apart);
        folded[1] += __shfl_xor_sync(ALL_LANES, folded[1], apart);
      }
      __syncwarp();  // all lanes have read what stood there
      if (lane == 0) softmax[r].z = all;
      if (pair == 0) {
        rescale[place + block] = !any || now == before ? 1.0f : exp_exact(before - now);
        totals[place + block] = any ? folded[0] + folded[1] : 0.0f;
      }
    }
  }

  // Adds up a chunk's weights: what each KV block has, in order.
  __device__ __forceinline__ void count_weights(unsigned chunk) {
    if (lane >= S::QUERIES) return;
    float total = softmax[lane].w;
    for (unsigned b = from(chunk) - chunk; b < to(chunk) - chunk; b++) {
      total = total * rescale[query(lane) * S::CHUNK + b] + totals[query(lane) * S::CHUNK + b];
    }
    softmax[lane].w = total;
  }

  // The lane's values of a position of a KV block, the `i`th time.
  __device__ __forceinline__ void load(const unsigned char* values, const unsigned char* scales, unsigned position, unsigned i,
                                       float (&v)[S::WIDTH]) const {
    using Stored = typename S::Stored;
    const unsigned char* const p = values + (position * a.kv.dim + dims[i]) * Stored::BYTES;
    if constexpr (S::WIDTH == 2) {
      const float2 both = Stored::two(p);
      v[0] = both.x;
      v[1] = both.y;
    } else {
      v[0] = Stored::one(p);
    }
    if constexpr (Stored::SCALED) {
      const unsigned per_row = a.kv.dim / a.kv.scale_block;
      const float scale = Kept<KV_F16>::one(scales + (position * per_row + dims[i] / a.kv.scale_block) * 2);
#pragma unroll
      for (unsigned e = 0; e < S::WIDTH; e++) v[e] = scale * v[e];
    }
  }

  // Adds the weighted values of a KV block.
  __device__ __forceinline__ void add(unsigned chunk, unsigned block, const unsigned char* values, const unsigned char* scales) {
    const unsigned begin = (chunk + block) * KV_BLOCK;
#pragma unroll
    for (unsigned r = 0; r < S::QUERIES; r++) {
      const float factor = rescale[query(r) * S::CHUNK + block];
      if (factor == 1.0f) continue;
#pragma unroll
      for (unsigned i = 0; i < S::UNITS; i++) {
#pragma unroll
        for (unsigned e = 0; e < S::WIDTH; e++) sums[r][i][e] *= factor;
      }
    }
    const bool all = whole.begin <= begin && whole.end >= begin + KV_BLOCK;
#pragma unroll
    for (unsigned i = 0; i < S::UNITS; i++) {
      if (first_dim(i) >= a.kv.dim) break;
      if (all) add_all(i, block, values, scales);
      else add_seen(i, begin, block, values, scales);
    }
  }

  __device__ __forceinline__ void add_all(unsigned i, unsigned block, const unsigned char* values, const unsigned char* scales) {
#pragma unroll 1
    for (unsigned j = 0; j < KV_BLOCK; j += 4) {
      float v[4][S::WIDTH];
#pragma unroll
      for (unsigned e = 0; e < 4; e++) load(values, scales, j + e, i, v[e]);
#pragma unroll
      for (unsigned r = 0; r < S::QUERIES; r++) {
        const float4 w = *reinterpret_cast<const float4*>(weights + (query(r) * S::CHUNK + block) * KV_BLOCK + j);
        const float each[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (unsigned e = 0; e < 4; e++) {
#pragma unroll
          for (unsigned k = 0; k < S::WIDTH; k++) sums[r][i][k] = fmaf(each[e], v[e][k], sums[r][i][k]);
        }
      }
    }
  }

  // Where a query sees some of the positions only. What it does not see may be anything.
  __device__ __forceinline__ void add_seen(unsigned i, unsigned begin, unsigned block, const unsigned char* values,
                                           const unsigned char* scales) {
#pragma unroll
    for (unsigned r = 0; r < S::QUERIES; r++) {
      const Range s = sees[query(r)];
      const unsigned first = s.begin > begin ? s.begin - begin : 0, end = s.end > begin ? s.end - begin : 0;
#pragma unroll 1
      for (unsigned j = first; j < KV_BLOCK && j < end; j++) {
        const float w = weights[(query(r) * S::CHUNK + block) * KV_BLOCK + j];
        float v[S::WIDTH];
        load(values, scales, j, i, v);
#pragma unroll
        for (unsigned k = 0; k < S::WIDTH; k++) sums[r][i][k] = fmaf(w, v[k], sums[r][i][k]);
      }
    }
  }

  // Adds the weighted values of an item.
  __device__ __forceinline__ void add_item(unsigned chunk, unsigned item, const unsigned char* slot) {
    if (query(0) >= count()) return;
    const unsigned first = from(chunk) + item * value_blocks(), last = to(chunk);
    const unsigned bytes = a.kv.dim * KV_BLOCK * S::Stored::BYTES;
    const unsigned scales = S::Stored::SCALED ? a.kv.dim / a.kv.scale_block * KV_BLOCK * 2 : 0;
#pragma unroll 1
    for (unsigned b = 0; b < value_blocks() && first + b < last; b++) {
      add(chunk, first + b - chunk, slot + b * bytes, slot + value_blocks() * bytes + b * scales);
    }
  }

  // Writes what a lane has of a query.
  __device__ __forceinline__ void store(float* to, unsigned i, const float (&v)[S::WIDTH]) const {
    if (first_dim(i) + lane * S::WIDTH >= a.kv.dim) return;
    if constexpr (S::WIDTH == 2) *reinterpret_cast<float2*>(to + dims[i]) = make_float2(v[0], v[1]);
    else to[dims[i]] = v[0];
  }

  // Leaves the sums of a split to be joined with others.
  __device__ __forceinline__ void leave(const cuckoo_tile& tile, unsigned split) {
    const unsigned first = tile.part + (split - tile.split) * tile.rows, dim = a.kv.dim;
#pragma unroll
    for (unsigned r = 0; r < S::QUERIES; r++) {
      const unsigned q = query(r);
      if (q >= count()) break;
      float* const part = at<float>(a.parts) + (uint64_t(first) * a.query_heads + places[q]) * (dim + 4);
#pragma unroll
      for (unsigned i = 0; i < S::UNITS; i++) store(part, i, sums[r][i]);
      if (member != 0 || lane != r) continue;
      part[dim] = softmax[r].z;
      part[dim + 1] = softmax[r].w;
    }
  }

  // Joins a split with those before it, whose sums are in the result. The last one makes it what it is to be.
  __device__ __forceinline__ void join(const cuckoo_tile& tile, unsigned split) {
    const unsigned mine = query(lane), position = split * SPLIT;
    float before = 1.0f, now = 0.0f;
    float inverse = 0.0f;
    bool any = false;
    if (lane < S::QUERIES) {
      const Range s = sees[mine];
      float4 all = softmax[lane];
      any = s.begin < position + SPLIT && s.end > position;
      const float high = all.z > all.x ? all.z : all.x;
      before = exp_exact(all.x - high);
      now = exp_exact(all.z - high);
      if (any) all = make_float4(high, fmaf(all.w, now, all.y * before), 0.0f, 0.0f);
      softmax[lane] = all;
      inverse = 1.0f / all.y;
    }
    const bool first = split == tile.split, last = position + SPLIT >= end_block * KV_BLOCK;
#pragma unroll
    for (unsigned r = 0; r < S::QUERIES; r++) {
      const unsigned q = query(r);
      const float factor = __shfl_sync(ALL_LANES, before, r), new_factor = __shfl_sync(ALL_LANES, now, r);
      const float part = __shfl_sync(ALL_LANES, inverse, r);
      const bool sees_some = __shfl_sync(ALL_LANES, any ? 1 : 0, r);
      if (q >= count()) continue;
      const uint64_t begin = (uint64_t(tile.first_row) * a.query_heads + places[q]) * a.kv.dim;
      float* const out = at<float>(a.out) + begin;
#pragma unroll
      for (unsigned i = 0; i < S::UNITS; i++) {
        if (first_dim(i) >= a.kv.dim) break;
        float v[S::WIDTH];
#pragma unroll
        for (unsigned e = 0; e < S::WIDTH; e++) {
          const float old = first ? 0.0f : out[dims[i] + e];
          v[e] = sees_some ? fmaf(sums[r][i][e], new_factor, old * factor) : old;
          if (last) v[e] *= part;
        }
        store(out, i, v);
        // Prefill has no register to spare for it, and a launch more is nothing there.
        if constexpr (S::WARPS > 1) {
          if (!last || a.rounded.planes == 0) continue;
          const unsigned d = first_dim(i) + lane * S::WIDTH;
          round_block<S::WIDTH>(a.rounded, (begin + d) / ROUNDED_COLS, v, d < a.kv.dim);
        }
      }
    }
  }

  // The next item, once it is there; begins to load the one that takes the place of the one before it.
  __device__ __forceinline__ const unsigned char* next_item() {
#pragma unroll 1
    for (bool there = false; !there;) {
      there = ahead == S::SLOTS - 1;
      if (there) {
        cp_async_wait<S::SLOTS - 2>();
        // What the item has is there for everyone, and nobody reads the one before it any more.
        __syncthreads();
      } else {
        ahead++;
      }
      if (loads.chunk < end_block) {
        fetch(loads, slots + newest * SLOT_BYTES);
        advance(loads);
      }
      cp_async_commit();
      newest = newest + 1 == S::SLOTS ? 0 : newest + 1;
    }
    // After the newest comes the oldest.
    return slots + newest * SLOT_BYTES;
  }

  __device__ __forceinline__ void run() {
    prepare();
#pragma unroll 1
    for (unsigned chunk = first_block / S::CHUNK * S::CHUNK; chunk < end_block; chunk += S::CHUNK) {
      float dots[S::QUERIES][2] = {};
#pragma unroll 1
      for (unsigned item = 0; item < key_items(); item++) multiply(chunk, item, next_item(), dots);
      weigh(chunk, dots);
#pragma unroll 1
      for (unsigned item = 0; item < value_items(chunk); item++) {
        const unsigned char* const slot = next_item();
        if (item == 0) count_weights(chunk);
        add_item(chunk, item, slot);
      }
      const unsigned split = chunk * KV_BLOCK / SPLIT, next = chunk + S::CHUNK;
      if (next < end_block && next * KV_BLOCK / SPLIT == split) continue;
      // Read again rather than held in registers all the while.
      const cuckoo_tile now = at<const cuckoo_tile>(a.tiles)[blockIdx.x];
      if (now.part == NO_PART) join(now, split);
      else leave(now, split);
      forget();
    }
  }
};

template <class S>
__device__ __forceinline__ void attend(const cuckoo_attention& a) {
  CUCKOO_SHARED(unsigned char, memory);
  Tile<S> tile(a, memory);
  tile.run();
}

// As many sums as there are queries: a decode row without groups has one.
template <KvKind KIND>
__device__ __forceinline__ void narrow(const cuckoo_attention& a) {
  const unsigned queries = at<const cuckoo_tile>(a.tiles)[blockIdx.x].rows * a.heads_each;
  if (queries <= 1) attend<Shape<KIND, 1, 1, 4, 1, 4, 3>>(a);
  else if (queries <= 4) attend<Shape<KIND, 4, 1, 4, 1, 4, 3>>(a);
  else attend<Shape<KIND, 8, 1, 4, 1, 4, 3>>(a);
}

}  // namespace attention

// Up to 8 queries, any head; up to 64, 32 or 16 queries by heads of up to 128, 256 or 512 values.
#define CUCKOO_ATTENTION(kind, KIND)                                                                                       \
  extern "C" __global__ void __launch_bounds__(128, 3)                                                                     \
  cuckoo_attention_narrow_##kind(const __grid_constant__ cuckoo_attention a) {                                             \
    attention::narrow<KIND>(a);                                                                                            \
  }                                                                                                                        \
  CUCKOO_KERNEL(256) cuckoo_attention_wide_128_##kind(const __grid_constant__ cuckoo_attention a) {                        \
    attention::attend<attention::Shape<KIND, 8, 8, 1, 2, 2, 2>>(a);                                                        \
  }                                                                                                                        \
  CUCKOO_KERNEL(256) cuckoo_attention_wide_256_##kind(const __grid_constant__ cuckoo_attention a) {                        \
    attention::attend<attention::Shape<KIND, 4, 8, 1, 2, 4, 2>>(a);                                                        \
  }                                                                                                                        \
  CUCKOO_KERNEL(256) cuckoo_attention_wide_512_##kind(const __grid_constant__ cuckoo_attention a) {                        \
    attention::attend<attention::Shape<KIND, 2, 8, 1, 2, 8, 2>>(a);                                                        \
  }
CUCKOO_KV_KINDS(CUCKOO_ATTENTION)

// Splits of a row and query head joined in order: a warp.
CUCKOO_KERNEL(32) cuckoo_attention_join(const __grid_constant__ cuckoo_attention a) {
  constexpr unsigned UNITS = KV_DIM_MAX / (WARP * 4);
  const cuckoo_tile tile = at<const cuckoo_tile>(a.tiles)[blockIdx.x];
  const unsigned lane = threadIdx.x, head = blockIdx.y, row = blockIdx.z, dim = a.kv.dim;
  if (row >= tile.rows) return;
  const attention::Range all = attention::seen(a, tile, row);
  float out[UNITS][4] = {};
  float max = a.sinks != 0 ? at<const float>(a.sinks)[head] : -INFINITY;
  float total = a.sinks != 0 ? 1.0f : 0.0f;
  const unsigned end = (all.end + attention::SPLIT - 1) / attention::SPLIT;
#pragma unroll 2
  for (unsigned split = all.begin / attention::SPLIT; split < end; split++) {
    const uint64_t place = uint64_t(tile.part + (split - tile.split) * tile.rows + row) * a.query_heads + head;
    const float* const part = at<const float>(a.parts) + place * (dim + 4);
    const float part_max = part[dim], part_total = part[dim + 1];
    const float highest = part_max > max ? part_max : max;
    const float before = exp_exact(max - highest), now = exp_exact(part_max - highest);
#pragma unroll
    for (unsigned i = 0; i < UNITS; i++) {
      const unsigned d = (i * WARP + lane) * 4;
      if (d >= dim) continue;
      const float4 v = *reinterpret_cast<const float4*>(part + d);
      const float each[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (unsigned e = 0; e < 4; e++) out[i][e] = fmaf(each[e], now, out[i][e] * before);
    }
    total = fmaf(part_total, now, total * before);
    max = highest;
  }
  const float inverse = 1.0f / total;
  float* const to = at<float>(a.out) + (uint64_t(tile.first_row + row) * a.query_heads + head) * dim;
#pragma unroll
  for (unsigned i = 0; i < UNITS; i++) {
    if (i * WARP * 4 >= dim) break;
    const unsigned d = (i * WARP + lane) * 4;
#pragma unroll
    for (unsigned e = 0; e < 4; e++) out[i][e] *= inverse;
    if (d < dim) *reinterpret_cast<float4*>(to + d) = make_float4(out[i][0], out[i][1], out[i][2], out[i][3]);
    if (a.rounded.planes == 0) continue;
    const uint64_t begin = (uint64_t(tile.first_row + row) * a.query_heads + head) * dim;
    round_block<4>(a.rounded, (begin + d) / ROUNDED_COLS, out[i], d < dim);
  }
}
