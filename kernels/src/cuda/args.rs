//! What kernels are given, as `cuda/args.h` says it: made by `build.rs` with the feature `bindings`.

pub type cuckoo_address = u64;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_row {
    pub position: u32,
    pub first_block: u32,
    pub span_end: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_row"][::core::mem::size_of::<cuckoo_row>() - 12usize];
    ["Alignment of cuckoo_row"][::core::mem::align_of::<cuckoo_row>() - 4usize];
    ["Offset of field: cuckoo_row::position"][::core::mem::offset_of!(cuckoo_row, position) - 0usize];
    ["Offset of field: cuckoo_row::first_block"][::core::mem::offset_of!(cuckoo_row, first_block) - 4usize];
    ["Offset of field: cuckoo_row::span_end"][::core::mem::offset_of!(cuckoo_row, span_end) - 8usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_integers {
    pub codes: cuckoo_address,
    pub scales: cuckoo_address,
    pub supers: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
    pub offset: i32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_integers"][::core::mem::size_of::<cuckoo_integers>() - 40usize];
    ["Alignment of cuckoo_integers"][::core::mem::align_of::<cuckoo_integers>() - 8usize];
    ["Offset of field: cuckoo_integers::codes"][::core::mem::offset_of!(cuckoo_integers, codes) - 0usize];
    ["Offset of field: cuckoo_integers::scales"][::core::mem::offset_of!(cuckoo_integers, scales) - 8usize];
    ["Offset of field: cuckoo_integers::supers"][::core::mem::offset_of!(cuckoo_integers, supers) - 16usize];
    ["Offset of field: cuckoo_integers::rows"][::core::mem::offset_of!(cuckoo_integers, rows) - 24usize];
    ["Offset of field: cuckoo_integers::cols"][::core::mem::offset_of!(cuckoo_integers, cols) - 28usize];
    ["Offset of field: cuckoo_integers::offset"][::core::mem::offset_of!(cuckoo_integers, offset) - 32usize];
    ["Offset of field: cuckoo_integers::padding"][::core::mem::offset_of!(cuckoo_integers, padding) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_floats {
    pub values: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_floats"][::core::mem::size_of::<cuckoo_floats>() - 16usize];
    ["Alignment of cuckoo_floats"][::core::mem::align_of::<cuckoo_floats>() - 8usize];
    ["Offset of field: cuckoo_floats::values"][::core::mem::offset_of!(cuckoo_floats, values) - 0usize];
    ["Offset of field: cuckoo_floats::rows"][::core::mem::offset_of!(cuckoo_floats, rows) - 8usize];
    ["Offset of field: cuckoo_floats::cols"][::core::mem::offset_of!(cuckoo_floats, cols) - 12usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_embed_integers {
    pub table: cuckoo_integers,
    pub tokens: cuckoo_address,
    pub out: cuckoo_address,
    pub count: u32,
    pub first_row: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_embed_integers"][::core::mem::size_of::<cuckoo_embed_integers>() - 64usize];
    ["Alignment of cuckoo_embed_integers"][::core::mem::align_of::<cuckoo_embed_integers>() - 8usize];
    ["Offset of field: cuckoo_embed_integers::table"][::core::mem::offset_of!(cuckoo_embed_integers, table) - 0usize];
    ["Offset of field: cuckoo_embed_integers::tokens"]
        [::core::mem::offset_of!(cuckoo_embed_integers, tokens) - 40usize];
    ["Offset of field: cuckoo_embed_integers::out"][::core::mem::offset_of!(cuckoo_embed_integers, out) - 48usize];
    ["Offset of field: cuckoo_embed_integers::count"][::core::mem::offset_of!(cuckoo_embed_integers, count) - 56usize];
    ["Offset of field: cuckoo_embed_integers::first_row"]
        [::core::mem::offset_of!(cuckoo_embed_integers, first_row) - 60usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_embed_floats {
    pub table: cuckoo_floats,
    pub tokens: cuckoo_address,
    pub out: cuckoo_address,
    pub count: u32,
    pub first_row: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_embed_floats"][::core::mem::size_of::<cuckoo_embed_floats>() - 40usize];
    ["Alignment of cuckoo_embed_floats"][::core::mem::align_of::<cuckoo_embed_floats>() - 8usize];
    ["Offset of field: cuckoo_embed_floats::table"][::core::mem::offset_of!(cuckoo_embed_floats, table) - 0usize];
    ["Offset of field: cuckoo_embed_floats::tokens"][::core::mem::offset_of!(cuckoo_embed_floats, tokens) - 16usize];
    ["Offset of field: cuckoo_embed_floats::out"][::core::mem::offset_of!(cuckoo_embed_floats, out) - 24usize];
    ["Offset of field: cuckoo_embed_floats::count"][::core::mem::offset_of!(cuckoo_embed_floats, count) - 32usize];
    ["Offset of field: cuckoo_embed_floats::first_row"]
        [::core::mem::offset_of!(cuckoo_embed_floats, first_row) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_quantize {
    pub x: cuckoo_address,
    pub q: cuckoo_address,
    pub scales: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
    pub planes: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_quantize"][::core::mem::size_of::<cuckoo_quantize>() - 40usize];
    ["Alignment of cuckoo_quantize"][::core::mem::align_of::<cuckoo_quantize>() - 8usize];
    ["Offset of field: cuckoo_quantize::x"][::core::mem::offset_of!(cuckoo_quantize, x) - 0usize];
    ["Offset of field: cuckoo_quantize::q"][::core::mem::offset_of!(cuckoo_quantize, q) - 8usize];
    ["Offset of field: cuckoo_quantize::scales"][::core::mem::offset_of!(cuckoo_quantize, scales) - 16usize];
    ["Offset of field: cuckoo_quantize::rows"][::core::mem::offset_of!(cuckoo_quantize, rows) - 24usize];
    ["Offset of field: cuckoo_quantize::cols"][::core::mem::offset_of!(cuckoo_quantize, cols) - 28usize];
    ["Offset of field: cuckoo_quantize::planes"][::core::mem::offset_of!(cuckoo_quantize, planes) - 32usize];
    ["Offset of field: cuckoo_quantize::padding"][::core::mem::offset_of!(cuckoo_quantize, padding) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_linear_integers {
    pub w: cuckoo_integers,
    pub q: cuckoo_address,
    pub scales: cuckoo_address,
    pub out: cuckoo_address,
    pub tokens: u32,
    pub planes: u32,
    pub out_cols: u32,
    pub first_row: u32,
    pub add: u32,
    pub tokens_each: u32,
    pub rows_each: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_linear_integers"][::core::mem::size_of::<cuckoo_linear_integers>() - 96usize];
    ["Alignment of cuckoo_linear_integers"][::core::mem::align_of::<cuckoo_linear_integers>() - 8usize];
    ["Offset of field: cuckoo_linear_integers::w"][::core::mem::offset_of!(cuckoo_linear_integers, w) - 0usize];
    ["Offset of field: cuckoo_linear_integers::q"][::core::mem::offset_of!(cuckoo_linear_integers, q) - 40usize];
    ["Offset of field: cuckoo_linear_integers::scales"]
        [::core::mem::offset_of!(cuckoo_linear_integers, scales) - 48usize];
    ["Offset of field: cuckoo_linear_integers::out"][::core::mem::offset_of!(cuckoo_linear_integers, out) - 56usize];
    ["Offset of field: cuckoo_linear_integers::tokens"]
        [::core::mem::offset_of!(cuckoo_linear_integers, tokens) - 64usize];
    ["Offset of field: cuckoo_linear_integers::planes"]
        [::core::mem::offset_of!(cuckoo_linear_integers, planes) - 68usize];
    ["Offset of field: cuckoo_linear_integers::out_cols"]
        [::core::mem::offset_of!(cuckoo_linear_integers, out_cols) - 72usize];
    ["Offset of field: cuckoo_linear_integers::first_row"]
        [::core::mem::offset_of!(cuckoo_linear_integers, first_row) - 76usize];
    ["Offset of field: cuckoo_linear_integers::add"][::core::mem::offset_of!(cuckoo_linear_integers, add) - 80usize];
    ["Offset of field: cuckoo_linear_integers::tokens_each"]
        [::core::mem::offset_of!(cuckoo_linear_integers, tokens_each) - 84usize];
    ["Offset of field: cuckoo_linear_integers::rows_each"]
        [::core::mem::offset_of!(cuckoo_linear_integers, rows_each) - 88usize];
    ["Offset of field: cuckoo_linear_integers::padding"]
        [::core::mem::offset_of!(cuckoo_linear_integers, padding) - 92usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_linear_floats {
    pub w: cuckoo_floats,
    pub x: cuckoo_address,
    pub out: cuckoo_address,
    pub tokens: u32,
    pub out_cols: u32,
    pub first_row: u32,
    pub add: u32,
    pub scale: f32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_linear_floats"][::core::mem::size_of::<cuckoo_linear_floats>() - 56usize];
    ["Alignment of cuckoo_linear_floats"][::core::mem::align_of::<cuckoo_linear_floats>() - 8usize];
    ["Offset of field: cuckoo_linear_floats::w"][::core::mem::offset_of!(cuckoo_linear_floats, w) - 0usize];
    ["Offset of field: cuckoo_linear_floats::x"][::core::mem::offset_of!(cuckoo_linear_floats, x) - 16usize];
    ["Offset of field: cuckoo_linear_floats::out"][::core::mem::offset_of!(cuckoo_linear_floats, out) - 24usize];
    ["Offset of field: cuckoo_linear_floats::tokens"][::core::mem::offset_of!(cuckoo_linear_floats, tokens) - 32usize];
    ["Offset of field: cuckoo_linear_floats::out_cols"]
        [::core::mem::offset_of!(cuckoo_linear_floats, out_cols) - 36usize];
    ["Offset of field: cuckoo_linear_floats::first_row"]
        [::core::mem::offset_of!(cuckoo_linear_floats, first_row) - 40usize];
    ["Offset of field: cuckoo_linear_floats::add"][::core::mem::offset_of!(cuckoo_linear_floats, add) - 44usize];
    ["Offset of field: cuckoo_linear_floats::scale"][::core::mem::offset_of!(cuckoo_linear_floats, scale) - 48usize];
    ["Offset of field: cuckoo_linear_floats::padding"]
        [::core::mem::offset_of!(cuckoo_linear_floats, padding) - 52usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_norm {
    pub x: cuckoo_address,
    pub weight: cuckoo_address,
    pub out: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
    pub heads: u32,
    pub first_head: u32,
    pub stride: u32,
    pub epsilon: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_norm"][::core::mem::size_of::<cuckoo_norm>() - 48usize];
    ["Alignment of cuckoo_norm"][::core::mem::align_of::<cuckoo_norm>() - 8usize];
    ["Offset of field: cuckoo_norm::x"][::core::mem::offset_of!(cuckoo_norm, x) - 0usize];
    ["Offset of field: cuckoo_norm::weight"][::core::mem::offset_of!(cuckoo_norm, weight) - 8usize];
    ["Offset of field: cuckoo_norm::out"][::core::mem::offset_of!(cuckoo_norm, out) - 16usize];
    ["Offset of field: cuckoo_norm::rows"][::core::mem::offset_of!(cuckoo_norm, rows) - 24usize];
    ["Offset of field: cuckoo_norm::cols"][::core::mem::offset_of!(cuckoo_norm, cols) - 28usize];
    ["Offset of field: cuckoo_norm::heads"][::core::mem::offset_of!(cuckoo_norm, heads) - 32usize];
    ["Offset of field: cuckoo_norm::first_head"][::core::mem::offset_of!(cuckoo_norm, first_head) - 36usize];
    ["Offset of field: cuckoo_norm::stride"][::core::mem::offset_of!(cuckoo_norm, stride) - 40usize];
    ["Offset of field: cuckoo_norm::epsilon"][::core::mem::offset_of!(cuckoo_norm, epsilon) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_layer_norm {
    pub x: cuckoo_address,
    pub weight: cuckoo_address,
    pub bias: cuckoo_address,
    pub out: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
    pub epsilon: f32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_layer_norm"][::core::mem::size_of::<cuckoo_layer_norm>() - 48usize];
    ["Alignment of cuckoo_layer_norm"][::core::mem::align_of::<cuckoo_layer_norm>() - 8usize];
    ["Offset of field: cuckoo_layer_norm::x"][::core::mem::offset_of!(cuckoo_layer_norm, x) - 0usize];
    ["Offset of field: cuckoo_layer_norm::weight"][::core::mem::offset_of!(cuckoo_layer_norm, weight) - 8usize];
    ["Offset of field: cuckoo_layer_norm::bias"][::core::mem::offset_of!(cuckoo_layer_norm, bias) - 16usize];
    ["Offset of field: cuckoo_layer_norm::out"][::core::mem::offset_of!(cuckoo_layer_norm, out) - 24usize];
    ["Offset of field: cuckoo_layer_norm::rows"][::core::mem::offset_of!(cuckoo_layer_norm, rows) - 32usize];
    ["Offset of field: cuckoo_layer_norm::cols"][::core::mem::offset_of!(cuckoo_layer_norm, cols) - 36usize];
    ["Offset of field: cuckoo_layer_norm::epsilon"][::core::mem::offset_of!(cuckoo_layer_norm, epsilon) - 40usize];
    ["Offset of field: cuckoo_layer_norm::padding"][::core::mem::offset_of!(cuckoo_layer_norm, padding) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_elementwise {
    pub x: cuckoo_address,
    pub y: cuckoo_address,
    pub out: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
    pub kind: u32,
    pub a: f32,
    pub b: f32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_elementwise"][::core::mem::size_of::<cuckoo_elementwise>() - 48usize];
    ["Alignment of cuckoo_elementwise"][::core::mem::align_of::<cuckoo_elementwise>() - 8usize];
    ["Offset of field: cuckoo_elementwise::x"][::core::mem::offset_of!(cuckoo_elementwise, x) - 0usize];
    ["Offset of field: cuckoo_elementwise::y"][::core::mem::offset_of!(cuckoo_elementwise, y) - 8usize];
    ["Offset of field: cuckoo_elementwise::out"][::core::mem::offset_of!(cuckoo_elementwise, out) - 16usize];
    ["Offset of field: cuckoo_elementwise::rows"][::core::mem::offset_of!(cuckoo_elementwise, rows) - 24usize];
    ["Offset of field: cuckoo_elementwise::cols"][::core::mem::offset_of!(cuckoo_elementwise, cols) - 28usize];
    ["Offset of field: cuckoo_elementwise::kind"][::core::mem::offset_of!(cuckoo_elementwise, kind) - 32usize];
    ["Offset of field: cuckoo_elementwise::a"][::core::mem::offset_of!(cuckoo_elementwise, a) - 36usize];
    ["Offset of field: cuckoo_elementwise::b"][::core::mem::offset_of!(cuckoo_elementwise, b) - 40usize];
    ["Offset of field: cuckoo_elementwise::padding"][::core::mem::offset_of!(cuckoo_elementwise, padding) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_rows {
    pub x: cuckoo_address,
    pub out: cuckoo_address,
    pub numbers: cuckoo_address,
    pub weights: cuckoo_address,
    pub count: u32,
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_rows"][::core::mem::size_of::<cuckoo_rows>() - 40usize];
    ["Alignment of cuckoo_rows"][::core::mem::align_of::<cuckoo_rows>() - 8usize];
    ["Offset of field: cuckoo_rows::x"][::core::mem::offset_of!(cuckoo_rows, x) - 0usize];
    ["Offset of field: cuckoo_rows::out"][::core::mem::offset_of!(cuckoo_rows, out) - 8usize];
    ["Offset of field: cuckoo_rows::numbers"][::core::mem::offset_of!(cuckoo_rows, numbers) - 16usize];
    ["Offset of field: cuckoo_rows::weights"][::core::mem::offset_of!(cuckoo_rows, weights) - 24usize];
    ["Offset of field: cuckoo_rows::count"][::core::mem::offset_of!(cuckoo_rows, count) - 32usize];
    ["Offset of field: cuckoo_rows::cols"][::core::mem::offset_of!(cuckoo_rows, cols) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_kv {
    pub keys: cuckoo_address,
    pub values: cuckoo_address,
    pub key_scales: cuckoo_address,
    pub value_scales: cuckoo_address,
    pub kind: u32,
    pub scale_block: u32,
    pub kv_heads: u32,
    pub dim: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_kv"][::core::mem::size_of::<cuckoo_kv>() - 48usize];
    ["Alignment of cuckoo_kv"][::core::mem::align_of::<cuckoo_kv>() - 8usize];
    ["Offset of field: cuckoo_kv::keys"][::core::mem::offset_of!(cuckoo_kv, keys) - 0usize];
    ["Offset of field: cuckoo_kv::values"][::core::mem::offset_of!(cuckoo_kv, values) - 8usize];
    ["Offset of field: cuckoo_kv::key_scales"][::core::mem::offset_of!(cuckoo_kv, key_scales) - 16usize];
    ["Offset of field: cuckoo_kv::value_scales"][::core::mem::offset_of!(cuckoo_kv, value_scales) - 24usize];
    ["Offset of field: cuckoo_kv::kind"][::core::mem::offset_of!(cuckoo_kv, kind) - 32usize];
    ["Offset of field: cuckoo_kv::scale_block"][::core::mem::offset_of!(cuckoo_kv, scale_block) - 36usize];
    ["Offset of field: cuckoo_kv::kv_heads"][::core::mem::offset_of!(cuckoo_kv, kv_heads) - 40usize];
    ["Offset of field: cuckoo_kv::dim"][::core::mem::offset_of!(cuckoo_kv, dim) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_rope_store {
    pub turns: cuckoo_address,
    pub rows: cuckoo_address,
    pub blocks: cuckoo_address,
    pub qkv: cuckoo_address,
    pub kv: cuckoo_kv,
    pub count: u32,
    pub query_heads: u32,
    pub pairs: u32,
    pub halves: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_rope_store"][::core::mem::size_of::<cuckoo_rope_store>() - 96usize];
    ["Alignment of cuckoo_rope_store"][::core::mem::align_of::<cuckoo_rope_store>() - 8usize];
    ["Offset of field: cuckoo_rope_store::turns"][::core::mem::offset_of!(cuckoo_rope_store, turns) - 0usize];
    ["Offset of field: cuckoo_rope_store::rows"][::core::mem::offset_of!(cuckoo_rope_store, rows) - 8usize];
    ["Offset of field: cuckoo_rope_store::blocks"][::core::mem::offset_of!(cuckoo_rope_store, blocks) - 16usize];
    ["Offset of field: cuckoo_rope_store::qkv"][::core::mem::offset_of!(cuckoo_rope_store, qkv) - 24usize];
    ["Offset of field: cuckoo_rope_store::kv"][::core::mem::offset_of!(cuckoo_rope_store, kv) - 32usize];
    ["Offset of field: cuckoo_rope_store::count"][::core::mem::offset_of!(cuckoo_rope_store, count) - 80usize];
    ["Offset of field: cuckoo_rope_store::query_heads"]
        [::core::mem::offset_of!(cuckoo_rope_store, query_heads) - 84usize];
    ["Offset of field: cuckoo_rope_store::pairs"][::core::mem::offset_of!(cuckoo_rope_store, pairs) - 88usize];
    ["Offset of field: cuckoo_rope_store::halves"][::core::mem::offset_of!(cuckoo_rope_store, halves) - 92usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_attention {
    pub rows: cuckoo_address,
    pub blocks: cuckoo_address,
    pub qkv: cuckoo_address,
    pub kv: cuckoo_kv,
    pub sinks: cuckoo_address,
    pub parts: cuckoo_address,
    pub out: cuckoo_address,
    pub count: u32,
    pub query_heads: u32,
    pub splits: u32,
    pub window: u32,
    pub causal: u32,
    pub scale: f32,
    pub softcap: f32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_attention"][::core::mem::size_of::<cuckoo_attention>() - 128usize];
    ["Alignment of cuckoo_attention"][::core::mem::align_of::<cuckoo_attention>() - 8usize];
    ["Offset of field: cuckoo_attention::rows"][::core::mem::offset_of!(cuckoo_attention, rows) - 0usize];
    ["Offset of field: cuckoo_attention::blocks"][::core::mem::offset_of!(cuckoo_attention, blocks) - 8usize];
    ["Offset of field: cuckoo_attention::qkv"][::core::mem::offset_of!(cuckoo_attention, qkv) - 16usize];
    ["Offset of field: cuckoo_attention::kv"][::core::mem::offset_of!(cuckoo_attention, kv) - 24usize];
    ["Offset of field: cuckoo_attention::sinks"][::core::mem::offset_of!(cuckoo_attention, sinks) - 72usize];
    ["Offset of field: cuckoo_attention::parts"][::core::mem::offset_of!(cuckoo_attention, parts) - 80usize];
    ["Offset of field: cuckoo_attention::out"][::core::mem::offset_of!(cuckoo_attention, out) - 88usize];
    ["Offset of field: cuckoo_attention::count"][::core::mem::offset_of!(cuckoo_attention, count) - 96usize];
    ["Offset of field: cuckoo_attention::query_heads"]
        [::core::mem::offset_of!(cuckoo_attention, query_heads) - 100usize];
    ["Offset of field: cuckoo_attention::splits"][::core::mem::offset_of!(cuckoo_attention, splits) - 104usize];
    ["Offset of field: cuckoo_attention::window"][::core::mem::offset_of!(cuckoo_attention, window) - 108usize];
    ["Offset of field: cuckoo_attention::causal"][::core::mem::offset_of!(cuckoo_attention, causal) - 112usize];
    ["Offset of field: cuckoo_attention::scale"][::core::mem::offset_of!(cuckoo_attention, scale) - 116usize];
    ["Offset of field: cuckoo_attention::softcap"][::core::mem::offset_of!(cuckoo_attention, softcap) - 120usize];
    ["Offset of field: cuckoo_attention::padding"][::core::mem::offset_of!(cuckoo_attention, padding) - 124usize];
};
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_tensor_map {
    pub words: [u64; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_tensor_map"][::core::mem::size_of::<cuckoo_tensor_map>() - 128usize];
    ["Alignment of cuckoo_tensor_map"][::core::mem::align_of::<cuckoo_tensor_map>() - 64usize];
    ["Offset of field: cuckoo_tensor_map::words"][::core::mem::offset_of!(cuckoo_tensor_map, words) - 0usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_narrow {
    pub x: cuckoo_address,
    pub out: cuckoo_address,
    pub scales: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_narrow"][::core::mem::size_of::<cuckoo_narrow>() - 32usize];
    ["Alignment of cuckoo_narrow"][::core::mem::align_of::<cuckoo_narrow>() - 8usize];
    ["Offset of field: cuckoo_narrow::x"][::core::mem::offset_of!(cuckoo_narrow, x) - 0usize];
    ["Offset of field: cuckoo_narrow::out"][::core::mem::offset_of!(cuckoo_narrow, out) - 8usize];
    ["Offset of field: cuckoo_narrow::scales"][::core::mem::offset_of!(cuckoo_narrow, scales) - 16usize];
    ["Offset of field: cuckoo_narrow::rows"][::core::mem::offset_of!(cuckoo_narrow, rows) - 24usize];
    ["Offset of field: cuckoo_narrow::cols"][::core::mem::offset_of!(cuckoo_narrow, cols) - 28usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_gemm {
    pub w: cuckoo_floats,
    pub x: cuckoo_address,
    pub scales: cuckoo_address,
    pub out: cuckoo_address,
    pub tokens: u32,
    pub out_cols: u32,
    pub first_row: u32,
    pub add: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_gemm"][::core::mem::size_of::<cuckoo_gemm>() - 56usize];
    ["Alignment of cuckoo_gemm"][::core::mem::align_of::<cuckoo_gemm>() - 8usize];
    ["Offset of field: cuckoo_gemm::w"][::core::mem::offset_of!(cuckoo_gemm, w) - 0usize];
    ["Offset of field: cuckoo_gemm::x"][::core::mem::offset_of!(cuckoo_gemm, x) - 16usize];
    ["Offset of field: cuckoo_gemm::scales"][::core::mem::offset_of!(cuckoo_gemm, scales) - 24usize];
    ["Offset of field: cuckoo_gemm::out"][::core::mem::offset_of!(cuckoo_gemm, out) - 32usize];
    ["Offset of field: cuckoo_gemm::tokens"][::core::mem::offset_of!(cuckoo_gemm, tokens) - 40usize];
    ["Offset of field: cuckoo_gemm::out_cols"][::core::mem::offset_of!(cuckoo_gemm, out_cols) - 44usize];
    ["Offset of field: cuckoo_gemm::first_row"][::core::mem::offset_of!(cuckoo_gemm, first_row) - 48usize];
    ["Offset of field: cuckoo_gemm::add"][::core::mem::offset_of!(cuckoo_gemm, add) - 52usize];
};
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_gemm_mapped {
    pub x_map: cuckoo_tensor_map,
    pub w_map: cuckoo_tensor_map,
    pub gemm: cuckoo_gemm,
    pub padding: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_gemm_mapped"][::core::mem::size_of::<cuckoo_gemm_mapped>() - 320usize];
    ["Alignment of cuckoo_gemm_mapped"][::core::mem::align_of::<cuckoo_gemm_mapped>() - 64usize];
    ["Offset of field: cuckoo_gemm_mapped::x_map"][::core::mem::offset_of!(cuckoo_gemm_mapped, x_map) - 0usize];
    ["Offset of field: cuckoo_gemm_mapped::w_map"][::core::mem::offset_of!(cuckoo_gemm_mapped, w_map) - 128usize];
    ["Offset of field: cuckoo_gemm_mapped::gemm"][::core::mem::offset_of!(cuckoo_gemm_mapped, gemm) - 256usize];
    ["Offset of field: cuckoo_gemm_mapped::padding"][::core::mem::offset_of!(cuckoo_gemm_mapped, padding) - 312usize];
};
