// All kernels, compiled for the CPU, by name. Rust calls `cuckoo_emulator_launch` as it calls the driver's launch.
#include <atomic>
#include <mutex>
#include <thread>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "../attention.cu"
#include "../elementwise.cu"
#include "../gemm_floats.cu"
#include "../gemm_integers.cu"
#include "../gemv_integers.cu"
#include "../kv_copy.cu"
#include "../linear.cu"
#include "../logprobs.cu"
#include "../norm.cu"
#include "../rope.cu"
#include "../routing.cu"
#include "../sampling.cu"
#include "../sm90/gemm.cu"

#if defined(__x86_64__) && !defined(CUCKOO_PORTABLE_FIBERS)
asm(".text\n"
    ".globl cuckoo_emulator_switch\n"
    ".type cuckoo_emulator_switch,@function\n"
    "cuckoo_emulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size cuckoo_emulator_switch,.-cuckoo_emulator_switch\n");
#endif

namespace {

template <class Args, void (*KERNEL)(Args)>
void call(const void* args) {
  Args copy;
  memcpy(&copy, args, sizeof copy);  // whose bytes may lie anywhere
  KERNEL(copy);
}

struct Kernel {
  const char* name;
  size_t args_bytes;
  void (*entry)(const void*);
};

#define ENTRY(name, structure) {#name, sizeof(structure), call<structure, name>},
#define LINEAR_ENTRY(bits, scales, halves, minimums) \
  ENTRY(cuckoo_linear_##bits##_##scales##_##halves##_##minimums, cuckoo_linear_integers)
#define GEMM_ENTRY(bits, scales, halves, minimums) \
  ENTRY(cuckoo_gemm_##bits##_##scales##_##halves##_##minimums, cuckoo_linear_integers)
#define GEMM_WIDE_ENTRY(bits, scales, halves, minimums) \
  ENTRY(cuckoo_gemm_wide_##bits##_##scales##_##halves##_##minimums, cuckoo_linear_integers)
#define EMBED_ENTRY(bits, scales, halves, minimums) \
  ENTRY(cuckoo_embed_##bits##_##scales##_##halves##_##minimums, cuckoo_embed_integers)
#define KV_ENTRIES(kind, KIND)                               \
  ENTRY(cuckoo_attention_narrow_##kind, cuckoo_attention)    \
  ENTRY(cuckoo_attention_wide_128_##kind, cuckoo_attention)  \
  ENTRY(cuckoo_attention_wide_256_##kind, cuckoo_attention)  \
  ENTRY(cuckoo_attention_wide_512_##kind, cuckoo_attention)  \
  ENTRY(cuckoo_rope_store_##kind, cuckoo_rope_store)

const Kernel KERNELS[] = {
    CUCKOO_FORMATS(LINEAR_ENTRY) CUCKOO_FORMATS(EMBED_ENTRY)
    ENTRY(cuckoo_linear_f32, cuckoo_linear_floats)
    ENTRY(cuckoo_linear_f16, cuckoo_linear_floats)
    ENTRY(cuckoo_linear_bf16, cuckoo_linear_floats)
    ENTRY(cuckoo_embed_f32, cuckoo_embed_floats)
    ENTRY(cuckoo_embed_f16, cuckoo_embed_floats)
    ENTRY(cuckoo_embed_bf16, cuckoo_embed_floats)
    ENTRY(cuckoo_linear_fp8, cuckoo_linear_floats)
    ENTRY(cuckoo_embed_fp8, cuckoo_embed_floats)
    ENTRY(cuckoo_quantize_rows, cuckoo_quantize)
    ENTRY(cuckoo_norm_rows, cuckoo_norm)
    ENTRY(cuckoo_layer_norm_rows, cuckoo_layer_norm)
    ENTRY(cuckoo_add_bias, cuckoo_elementwise)
    ENTRY(cuckoo_add_scaled, cuckoo_elementwise)
    ENTRY(cuckoo_scale, cuckoo_elementwise)
    ENTRY(cuckoo_gate, cuckoo_elementwise)
    ENTRY(cuckoo_activate, cuckoo_elementwise)
    ENTRY(cuckoo_gather, cuckoo_rows)
    ENTRY(cuckoo_scatter_add, cuckoo_rows)
    ENTRY(cuckoo_mean_rows, cuckoo_rows)
    ENTRY(cuckoo_normalize_rows, cuckoo_norm)
    CUCKOO_KV_KINDS(KV_ENTRIES)
    ENTRY(cuckoo_attention_join, cuckoo_attention)
    CUCKOO_FORMATS(GEMM_ENTRY) CUCKOO_FORMATS(GEMM_WIDE_ENTRY)
    ENTRY(cuckoo_narrow_bf16, cuckoo_narrow)
    ENTRY(cuckoo_narrow_f16, cuckoo_narrow)
    ENTRY(cuckoo_gemm_wide_bf16, cuckoo_gemm)
    ENTRY(cuckoo_gemm_wide_f16, cuckoo_gemm)
    ENTRY(cuckoo_gemm_skinny_bf16, cuckoo_gemm)
    ENTRY(cuckoo_gemm_skinny_f16, cuckoo_gemm)
    ENTRY(cuckoo_gemm_hopper_128_bf16, cuckoo_gemm_mapped)
    ENTRY(cuckoo_gemm_hopper_256_bf16, cuckoo_gemm_mapped)
    ENTRY(cuckoo_gemm_hopper_128_f16, cuckoo_gemm_mapped)
    ENTRY(cuckoo_gemm_hopper_256_f16, cuckoo_gemm_mapped)

    ENTRY(cuckoo_adjust_logits, cuckoo_adjust)
    ENTRY(cuckoo_draw_tokens, cuckoo_sample)
    ENTRY(cuckoo_take_drawn_tokens, cuckoo_take_drawn)
    ENTRY(cuckoo_logprob_ranks, cuckoo_logprobs)
    ENTRY(cuckoo_logprob_exponentials, cuckoo_logprobs)
    ENTRY(cuckoo_logprob_sums, cuckoo_logprobs)
    ENTRY(cuckoo_kv_pack, cuckoo_kv_copy)
    ENTRY(cuckoo_route_rows, cuckoo_route)
    ENTRY(cuckoo_norm_heads, cuckoo_norm)
};

// Blocks of a launch, taken by threads of the host one after the other until one has a fault.
struct Launch {
  const Kernel* kernel = nullptr;
  dim3 grid, block;
  size_t shared_bytes = 0;
  const void* args = nullptr;
  unsigned order = 0;
  std::atomic<uint64_t> next{0};
  std::mutex lock;
  std::string fault;

  void work() {
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    static thread_local emulator::Block one;
    one.fault.clear();
    constexpr size_t ALIGNMENT = 1024;  // of tiles
    std::vector<uint64_t> shared((shared_bytes + ALIGNMENT) / 8 + 1);
    one.size = block;
    one.grid = grid;
    one.entry = kernel->entry;
    one.args = args;
    one.shared_bytes = shared_bytes;
    one.shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
#ifdef __SANITIZE_ADDRESS__
    // What alignment leaves over is not the block's.
    const char* const end = reinterpret_cast<const char*>(shared.data() + shared.size());
    ASAN_POISON_MEMORY_REGION(one.shared + shared_bytes, size_t(end - (one.shared + shared_bytes)));
#endif
    for (uint64_t i; (i = next++) < blocks;) {
      // NaN, whatever it is read as: nobody may read what nobody has written.
      memset(one.shared, 0xff, shared_bytes);
      one.index = dim3(unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / (uint64_t(grid.x) * grid.y)));
      one.run(order);
      if (one.fault.empty()) continue;
      const std::lock_guard<std::mutex> hold(lock);
      if (fault.empty()) fault = one.fault;
      next = blocks;
    }
  }
};

}  // namespace

// Runs a kernel. Returns 0, or 1 and what went wrong in `message`.
extern "C" int cuckoo_emulator_launch(const char* name, const unsigned grid[3], unsigned threads, size_t shared_bytes,
                                      const void* args, size_t args_bytes, unsigned order, unsigned host_threads,
                                      char* message, size_t message_bytes) {
  const auto fail = [&](const std::string& why) {
    snprintf(message, message_bytes, "%s: %s", name, why.c_str());
    return 1;
  };
  for (const Kernel& kernel : KERNELS) {
    if (strcmp(kernel.name, name) != 0) continue;
    if (kernel.args_bytes != args_bytes) return fail("arguments of another size");
    if (threads == 0 || threads > emulator::THREADS_MAX) return fail("a block has 1 to 1024 threads");
    Launch launch;
    launch.kernel = &kernel;
    launch.grid = dim3(grid[0], grid[1], grid[2]);
    launch.block = dim3(threads);
    launch.shared_bytes = shared_bytes;
    launch.args = args;
    launch.order = order;
    const uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    std::vector<std::thread> others;
    for (unsigned i = 1; i < host_threads && i < blocks; i++) others.emplace_back([&] { launch.work(); });
    launch.work();
    for (std::thread& other : others) other.join();
    return launch.fault.empty() ? 0 : fail(launch.fault);
  }
  return fail("there is no such kernel");
}

// exp and log of each of `count` numbers, as kernels compute them.
extern "C" void cuckoo_emulator_libm(const double* x, double* exps, double* logs, size_t count) {
  for (size_t i = 0; i < count; i++) {
    exps[i] = libm::exp(x[i]);
    logs[i] = libm::log(x[i]);
  }
}

// The name of kernel `i`, or null.
extern "C" const char* cuckoo_emulator_kernel(size_t i) {
  return i < sizeof KERNELS / sizeof *KERNELS ? KERNELS[i].name : nullptr;
}
