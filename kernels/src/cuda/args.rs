//! What kernels are given, as `cuda/args.h` says it: made by `build.rs` with the feature `bindings`.

pub type cuckoo_address = u64;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_kv_rows {
    pub first_row: u32,
    pub rows: u32,
    pub position: u32,
    pub block: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_kv_rows"][::core::mem::size_of::<cuckoo_kv_rows>() - 16usize];
    ["Alignment of cuckoo_kv_rows"][::core::mem::align_of::<cuckoo_kv_rows>() - 4usize];
    ["Offset of field: cuckoo_kv_rows::first_row"][::core::mem::offset_of!(cuckoo_kv_rows, first_row) - 0usize];
    ["Offset of field: cuckoo_kv_rows::rows"][::core::mem::offset_of!(cuckoo_kv_rows, rows) - 4usize];
    ["Offset of field: cuckoo_kv_rows::position"][::core::mem::offset_of!(cuckoo_kv_rows, position) - 8usize];
    ["Offset of field: cuckoo_kv_rows::block"][::core::mem::offset_of!(cuckoo_kv_rows, block) - 12usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_integers {
    pub codes: cuckoo_address,
    pub scales: cuckoo_address,
    pub supers: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_integers"][::core::mem::size_of::<cuckoo_integers>() - 32usize];
    ["Alignment of cuckoo_integers"][::core::mem::align_of::<cuckoo_integers>() - 8usize];
    ["Offset of field: cuckoo_integers::codes"][::core::mem::offset_of!(cuckoo_integers, codes) - 0usize];
    ["Offset of field: cuckoo_integers::scales"][::core::mem::offset_of!(cuckoo_integers, scales) - 8usize];
    ["Offset of field: cuckoo_integers::supers"][::core::mem::offset_of!(cuckoo_integers, supers) - 16usize];
    ["Offset of field: cuckoo_integers::rows"][::core::mem::offset_of!(cuckoo_integers, rows) - 24usize];
    ["Offset of field: cuckoo_integers::cols"][::core::mem::offset_of!(cuckoo_integers, cols) - 28usize];
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
    ["Size of cuckoo_embed_integers"][::core::mem::size_of::<cuckoo_embed_integers>() - 56usize];
    ["Alignment of cuckoo_embed_integers"][::core::mem::align_of::<cuckoo_embed_integers>() - 8usize];
    ["Offset of field: cuckoo_embed_integers::table"][::core::mem::offset_of!(cuckoo_embed_integers, table) - 0usize];
    ["Offset of field: cuckoo_embed_integers::tokens"]
        [::core::mem::offset_of!(cuckoo_embed_integers, tokens) - 32usize];
    ["Offset of field: cuckoo_embed_integers::out"][::core::mem::offset_of!(cuckoo_embed_integers, out) - 40usize];
    ["Offset of field: cuckoo_embed_integers::count"][::core::mem::offset_of!(cuckoo_embed_integers, count) - 48usize];
    ["Offset of field: cuckoo_embed_integers::first_row"]
        [::core::mem::offset_of!(cuckoo_embed_integers, first_row) - 52usize];
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
pub struct cuckoo_rounded {
    pub q: cuckoo_address,
    pub factors: cuckoo_address,
    pub halves: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
    pub planes: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_rounded"][::core::mem::size_of::<cuckoo_rounded>() - 40usize];
    ["Alignment of cuckoo_rounded"][::core::mem::align_of::<cuckoo_rounded>() - 8usize];
    ["Offset of field: cuckoo_rounded::q"][::core::mem::offset_of!(cuckoo_rounded, q) - 0usize];
    ["Offset of field: cuckoo_rounded::factors"][::core::mem::offset_of!(cuckoo_rounded, factors) - 8usize];
    ["Offset of field: cuckoo_rounded::halves"][::core::mem::offset_of!(cuckoo_rounded, halves) - 16usize];
    ["Offset of field: cuckoo_rounded::rows"][::core::mem::offset_of!(cuckoo_rounded, rows) - 24usize];
    ["Offset of field: cuckoo_rounded::cols"][::core::mem::offset_of!(cuckoo_rounded, cols) - 28usize];
    ["Offset of field: cuckoo_rounded::planes"][::core::mem::offset_of!(cuckoo_rounded, planes) - 32usize];
    ["Offset of field: cuckoo_rounded::padding"][::core::mem::offset_of!(cuckoo_rounded, padding) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_quantize {
    pub x: cuckoo_address,
    pub to: cuckoo_rounded,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_quantize"][::core::mem::size_of::<cuckoo_quantize>() - 48usize];
    ["Alignment of cuckoo_quantize"][::core::mem::align_of::<cuckoo_quantize>() - 8usize];
    ["Offset of field: cuckoo_quantize::x"][::core::mem::offset_of!(cuckoo_quantize, x) - 0usize];
    ["Offset of field: cuckoo_quantize::to"][::core::mem::offset_of!(cuckoo_quantize, to) - 8usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_linear_integers {
    pub w: cuckoo_integers,
    pub q: cuckoo_address,
    pub factors: cuckoo_address,
    pub out: cuckoo_address,
    pub tokens: u32,
    pub planes: u32,
    pub out_cols: u32,
    pub first_row: u32,
    pub add: u32,
    pub tile: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_linear_integers"][::core::mem::size_of::<cuckoo_linear_integers>() - 80usize];
    ["Alignment of cuckoo_linear_integers"][::core::mem::align_of::<cuckoo_linear_integers>() - 8usize];
    ["Offset of field: cuckoo_linear_integers::w"][::core::mem::offset_of!(cuckoo_linear_integers, w) - 0usize];
    ["Offset of field: cuckoo_linear_integers::q"][::core::mem::offset_of!(cuckoo_linear_integers, q) - 32usize];
    ["Offset of field: cuckoo_linear_integers::factors"]
        [::core::mem::offset_of!(cuckoo_linear_integers, factors) - 40usize];
    ["Offset of field: cuckoo_linear_integers::out"][::core::mem::offset_of!(cuckoo_linear_integers, out) - 48usize];
    ["Offset of field: cuckoo_linear_integers::tokens"]
        [::core::mem::offset_of!(cuckoo_linear_integers, tokens) - 56usize];
    ["Offset of field: cuckoo_linear_integers::planes"]
        [::core::mem::offset_of!(cuckoo_linear_integers, planes) - 60usize];
    ["Offset of field: cuckoo_linear_integers::out_cols"]
        [::core::mem::offset_of!(cuckoo_linear_integers, out_cols) - 64usize];
    ["Offset of field: cuckoo_linear_integers::first_row"]
        [::core::mem::offset_of!(cuckoo_linear_integers, first_row) - 68usize];
    ["Offset of field: cuckoo_linear_integers::add"][::core::mem::offset_of!(cuckoo_linear_integers, add) - 72usize];
    ["Offset of field: cuckoo_linear_integers::tile"][::core::mem::offset_of!(cuckoo_linear_integers, tile) - 76usize];
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
    pub rounded: cuckoo_rounded,
    pub rows: u32,
    pub cols: u32,
    pub heads: u32,
    pub first_head: u32,
    pub stride: u32,
    pub epsilon: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_norm"][::core::mem::size_of::<cuckoo_norm>() - 88usize];
    ["Alignment of cuckoo_norm"][::core::mem::align_of::<cuckoo_norm>() - 8usize];
    ["Offset of field: cuckoo_norm::x"][::core::mem::offset_of!(cuckoo_norm, x) - 0usize];
    ["Offset of field: cuckoo_norm::weight"][::core::mem::offset_of!(cuckoo_norm, weight) - 8usize];
    ["Offset of field: cuckoo_norm::out"][::core::mem::offset_of!(cuckoo_norm, out) - 16usize];
    ["Offset of field: cuckoo_norm::rounded"][::core::mem::offset_of!(cuckoo_norm, rounded) - 24usize];
    ["Offset of field: cuckoo_norm::rows"][::core::mem::offset_of!(cuckoo_norm, rows) - 64usize];
    ["Offset of field: cuckoo_norm::cols"][::core::mem::offset_of!(cuckoo_norm, cols) - 68usize];
    ["Offset of field: cuckoo_norm::heads"][::core::mem::offset_of!(cuckoo_norm, heads) - 72usize];
    ["Offset of field: cuckoo_norm::first_head"][::core::mem::offset_of!(cuckoo_norm, first_head) - 76usize];
    ["Offset of field: cuckoo_norm::stride"][::core::mem::offset_of!(cuckoo_norm, stride) - 80usize];
    ["Offset of field: cuckoo_norm::epsilon"][::core::mem::offset_of!(cuckoo_norm, epsilon) - 84usize];
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
    pub rounded: cuckoo_rounded,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_elementwise"][::core::mem::size_of::<cuckoo_elementwise>() - 88usize];
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
    ["Offset of field: cuckoo_elementwise::rounded"][::core::mem::offset_of!(cuckoo_elementwise, rounded) - 48usize];
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
    pub groups: cuckoo_address,
    pub qkv: cuckoo_address,
    pub kv: cuckoo_kv,
    pub query_heads: u32,
    pub pairs: u32,
    pub halves: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_rope_store"][::core::mem::size_of::<cuckoo_rope_store>() - 88usize];
    ["Alignment of cuckoo_rope_store"][::core::mem::align_of::<cuckoo_rope_store>() - 8usize];
    ["Offset of field: cuckoo_rope_store::turns"][::core::mem::offset_of!(cuckoo_rope_store, turns) - 0usize];
    ["Offset of field: cuckoo_rope_store::groups"][::core::mem::offset_of!(cuckoo_rope_store, groups) - 8usize];
    ["Offset of field: cuckoo_rope_store::qkv"][::core::mem::offset_of!(cuckoo_rope_store, qkv) - 16usize];
    ["Offset of field: cuckoo_rope_store::kv"][::core::mem::offset_of!(cuckoo_rope_store, kv) - 24usize];
    ["Offset of field: cuckoo_rope_store::query_heads"]
        [::core::mem::offset_of!(cuckoo_rope_store, query_heads) - 72usize];
    ["Offset of field: cuckoo_rope_store::pairs"][::core::mem::offset_of!(cuckoo_rope_store, pairs) - 76usize];
    ["Offset of field: cuckoo_rope_store::halves"][::core::mem::offset_of!(cuckoo_rope_store, halves) - 80usize];
    ["Offset of field: cuckoo_rope_store::padding"][::core::mem::offset_of!(cuckoo_rope_store, padding) - 84usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_tile {
    pub first_row: u32,
    pub rows: u32,
    pub position: u32,
    pub first_block: u32,
    pub span_end: u32,
    pub split: u32,
    pub split_end: u32,
    pub part: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_tile"][::core::mem::size_of::<cuckoo_tile>() - 32usize];
    ["Alignment of cuckoo_tile"][::core::mem::align_of::<cuckoo_tile>() - 4usize];
    ["Offset of field: cuckoo_tile::first_row"][::core::mem::offset_of!(cuckoo_tile, first_row) - 0usize];
    ["Offset of field: cuckoo_tile::rows"][::core::mem::offset_of!(cuckoo_tile, rows) - 4usize];
    ["Offset of field: cuckoo_tile::position"][::core::mem::offset_of!(cuckoo_tile, position) - 8usize];
    ["Offset of field: cuckoo_tile::first_block"][::core::mem::offset_of!(cuckoo_tile, first_block) - 12usize];
    ["Offset of field: cuckoo_tile::span_end"][::core::mem::offset_of!(cuckoo_tile, span_end) - 16usize];
    ["Offset of field: cuckoo_tile::split"][::core::mem::offset_of!(cuckoo_tile, split) - 20usize];
    ["Offset of field: cuckoo_tile::split_end"][::core::mem::offset_of!(cuckoo_tile, split_end) - 24usize];
    ["Offset of field: cuckoo_tile::part"][::core::mem::offset_of!(cuckoo_tile, part) - 28usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_attention {
    pub tiles: cuckoo_address,
    pub blocks: cuckoo_address,
    pub qkv: cuckoo_address,
    pub kv: cuckoo_kv,
    pub sinks: cuckoo_address,
    pub parts: cuckoo_address,
    pub out: cuckoo_address,
    pub rounded: cuckoo_rounded,
    pub query_heads: u32,
    pub heads_each: u32,
    pub window: u32,
    pub causal: u32,
    pub scale: f32,
    pub softcap: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_attention"][::core::mem::size_of::<cuckoo_attention>() - 160usize];
    ["Alignment of cuckoo_attention"][::core::mem::align_of::<cuckoo_attention>() - 8usize];
    ["Offset of field: cuckoo_attention::tiles"][::core::mem::offset_of!(cuckoo_attention, tiles) - 0usize];
    ["Offset of field: cuckoo_attention::blocks"][::core::mem::offset_of!(cuckoo_attention, blocks) - 8usize];
    ["Offset of field: cuckoo_attention::qkv"][::core::mem::offset_of!(cuckoo_attention, qkv) - 16usize];
    ["Offset of field: cuckoo_attention::kv"][::core::mem::offset_of!(cuckoo_attention, kv) - 24usize];
    ["Offset of field: cuckoo_attention::sinks"][::core::mem::offset_of!(cuckoo_attention, sinks) - 72usize];
    ["Offset of field: cuckoo_attention::parts"][::core::mem::offset_of!(cuckoo_attention, parts) - 80usize];
    ["Offset of field: cuckoo_attention::out"][::core::mem::offset_of!(cuckoo_attention, out) - 88usize];
    ["Offset of field: cuckoo_attention::rounded"][::core::mem::offset_of!(cuckoo_attention, rounded) - 96usize];
    ["Offset of field: cuckoo_attention::query_heads"]
        [::core::mem::offset_of!(cuckoo_attention, query_heads) - 136usize];
    ["Offset of field: cuckoo_attention::heads_each"][::core::mem::offset_of!(cuckoo_attention, heads_each) - 140usize];
    ["Offset of field: cuckoo_attention::window"][::core::mem::offset_of!(cuckoo_attention, window) - 144usize];
    ["Offset of field: cuckoo_attention::causal"][::core::mem::offset_of!(cuckoo_attention, causal) - 148usize];
    ["Offset of field: cuckoo_attention::scale"][::core::mem::offset_of!(cuckoo_attention, scale) - 152usize];
    ["Offset of field: cuckoo_attention::softcap"][::core::mem::offset_of!(cuckoo_attention, softcap) - 156usize];
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
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_list {
    pub first: u32,
    pub count: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_list"][::core::mem::size_of::<cuckoo_list>() - 8usize];
    ["Alignment of cuckoo_list"][::core::mem::align_of::<cuckoo_list>() - 4usize];
    ["Offset of field: cuckoo_list::first"][::core::mem::offset_of!(cuckoo_list, first) - 0usize];
    ["Offset of field: cuckoo_list::count"][::core::mem::offset_of!(cuckoo_list, count) - 4usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_changes {
    pub row: u32,
    pub masked: u32,
    pub mask: cuckoo_list,
    pub allowed: cuckoo_list,
    pub biases: cuckoo_list,
    pub seen: cuckoo_list,
    pub repeated: cuckoo_list,
    pub bad: cuckoo_list,
    pub forbidden: cuckoo_list,
    pub repetition: f32,
    pub presence: f32,
    pub frequency: f32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_changes"][::core::mem::size_of::<cuckoo_changes>() - 80usize];
    ["Alignment of cuckoo_changes"][::core::mem::align_of::<cuckoo_changes>() - 4usize];
    ["Offset of field: cuckoo_changes::row"][::core::mem::offset_of!(cuckoo_changes, row) - 0usize];
    ["Offset of field: cuckoo_changes::masked"][::core::mem::offset_of!(cuckoo_changes, masked) - 4usize];
    ["Offset of field: cuckoo_changes::mask"][::core::mem::offset_of!(cuckoo_changes, mask) - 8usize];
    ["Offset of field: cuckoo_changes::allowed"][::core::mem::offset_of!(cuckoo_changes, allowed) - 16usize];
    ["Offset of field: cuckoo_changes::biases"][::core::mem::offset_of!(cuckoo_changes, biases) - 24usize];
    ["Offset of field: cuckoo_changes::seen"][::core::mem::offset_of!(cuckoo_changes, seen) - 32usize];
    ["Offset of field: cuckoo_changes::repeated"][::core::mem::offset_of!(cuckoo_changes, repeated) - 40usize];
    ["Offset of field: cuckoo_changes::bad"][::core::mem::offset_of!(cuckoo_changes, bad) - 48usize];
    ["Offset of field: cuckoo_changes::forbidden"][::core::mem::offset_of!(cuckoo_changes, forbidden) - 56usize];
    ["Offset of field: cuckoo_changes::repetition"][::core::mem::offset_of!(cuckoo_changes, repetition) - 64usize];
    ["Offset of field: cuckoo_changes::presence"][::core::mem::offset_of!(cuckoo_changes, presence) - 68usize];
    ["Offset of field: cuckoo_changes::frequency"][::core::mem::offset_of!(cuckoo_changes, frequency) - 72usize];
    ["Offset of field: cuckoo_changes::padding"][::core::mem::offset_of!(cuckoo_changes, padding) - 76usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_adjust {
    pub logits: cuckoo_address,
    pub requests: cuckoo_address,
    pub lists: cuckoo_address,
    pub out: cuckoo_address,
    pub cols: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_adjust"][::core::mem::size_of::<cuckoo_adjust>() - 40usize];
    ["Alignment of cuckoo_adjust"][::core::mem::align_of::<cuckoo_adjust>() - 8usize];
    ["Offset of field: cuckoo_adjust::logits"][::core::mem::offset_of!(cuckoo_adjust, logits) - 0usize];
    ["Offset of field: cuckoo_adjust::requests"][::core::mem::offset_of!(cuckoo_adjust, requests) - 8usize];
    ["Offset of field: cuckoo_adjust::lists"][::core::mem::offset_of!(cuckoo_adjust, lists) - 16usize];
    ["Offset of field: cuckoo_adjust::out"][::core::mem::offset_of!(cuckoo_adjust, out) - 24usize];
    ["Offset of field: cuckoo_adjust::cols"][::core::mem::offset_of!(cuckoo_adjust, cols) - 32usize];
    ["Offset of field: cuckoo_adjust::padding"][::core::mem::offset_of!(cuckoo_adjust, padding) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_draw {
    pub logits: cuckoo_address,
    pub temperature: f64,
    pub top_p: f64,
    pub xtc: f64,
    pub seed: [u32; 2usize],
    pub position: [u32; 2usize],
    pub top_k: u32,
    pub to: u32,
    pub least: f32,
    pub sharpness: f32,
    pub near: f32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_draw"][::core::mem::size_of::<cuckoo_draw>() - 72usize];
    ["Alignment of cuckoo_draw"][::core::mem::align_of::<cuckoo_draw>() - 8usize];
    ["Offset of field: cuckoo_draw::logits"][::core::mem::offset_of!(cuckoo_draw, logits) - 0usize];
    ["Offset of field: cuckoo_draw::temperature"][::core::mem::offset_of!(cuckoo_draw, temperature) - 8usize];
    ["Offset of field: cuckoo_draw::top_p"][::core::mem::offset_of!(cuckoo_draw, top_p) - 16usize];
    ["Offset of field: cuckoo_draw::xtc"][::core::mem::offset_of!(cuckoo_draw, xtc) - 24usize];
    ["Offset of field: cuckoo_draw::seed"][::core::mem::offset_of!(cuckoo_draw, seed) - 32usize];
    ["Offset of field: cuckoo_draw::position"][::core::mem::offset_of!(cuckoo_draw, position) - 40usize];
    ["Offset of field: cuckoo_draw::top_k"][::core::mem::offset_of!(cuckoo_draw, top_k) - 48usize];
    ["Offset of field: cuckoo_draw::to"][::core::mem::offset_of!(cuckoo_draw, to) - 52usize];
    ["Offset of field: cuckoo_draw::least"][::core::mem::offset_of!(cuckoo_draw, least) - 56usize];
    ["Offset of field: cuckoo_draw::sharpness"][::core::mem::offset_of!(cuckoo_draw, sharpness) - 60usize];
    ["Offset of field: cuckoo_draw::near"][::core::mem::offset_of!(cuckoo_draw, near) - 64usize];
    ["Offset of field: cuckoo_draw::padding"][::core::mem::offset_of!(cuckoo_draw, padding) - 68usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_sample {
    pub draws: cuckoo_address,
    pub tokens: cuckoo_address,
    pub cols: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_sample"][::core::mem::size_of::<cuckoo_sample>() - 24usize];
    ["Alignment of cuckoo_sample"][::core::mem::align_of::<cuckoo_sample>() - 8usize];
    ["Offset of field: cuckoo_sample::draws"][::core::mem::offset_of!(cuckoo_sample, draws) - 0usize];
    ["Offset of field: cuckoo_sample::tokens"][::core::mem::offset_of!(cuckoo_sample, tokens) - 8usize];
    ["Offset of field: cuckoo_sample::cols"][::core::mem::offset_of!(cuckoo_sample, cols) - 16usize];
    ["Offset of field: cuckoo_sample::padding"][::core::mem::offset_of!(cuckoo_sample, padding) - 20usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_take_drawn {
    pub tokens: cuckoo_address,
    pub drawn: cuckoo_address,
    pub pairs: cuckoo_address,
    pub count: u32,
    pub vocabulary: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_take_drawn"][::core::mem::size_of::<cuckoo_take_drawn>() - 32usize];
    ["Alignment of cuckoo_take_drawn"][::core::mem::align_of::<cuckoo_take_drawn>() - 8usize];
    ["Offset of field: cuckoo_take_drawn::tokens"][::core::mem::offset_of!(cuckoo_take_drawn, tokens) - 0usize];
    ["Offset of field: cuckoo_take_drawn::drawn"][::core::mem::offset_of!(cuckoo_take_drawn, drawn) - 8usize];
    ["Offset of field: cuckoo_take_drawn::pairs"][::core::mem::offset_of!(cuckoo_take_drawn, pairs) - 16usize];
    ["Offset of field: cuckoo_take_drawn::count"][::core::mem::offset_of!(cuckoo_take_drawn, count) - 24usize];
    ["Offset of field: cuckoo_take_drawn::vocabulary"]
        [::core::mem::offset_of!(cuckoo_take_drawn, vocabulary) - 28usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_question {
    pub row: u32,
    pub token: u32,
    pub top: u32,
    pub first: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_question"][::core::mem::size_of::<cuckoo_question>() - 16usize];
    ["Alignment of cuckoo_question"][::core::mem::align_of::<cuckoo_question>() - 4usize];
    ["Offset of field: cuckoo_question::row"][::core::mem::offset_of!(cuckoo_question, row) - 0usize];
    ["Offset of field: cuckoo_question::token"][::core::mem::offset_of!(cuckoo_question, token) - 4usize];
    ["Offset of field: cuckoo_question::top"][::core::mem::offset_of!(cuckoo_question, top) - 8usize];
    ["Offset of field: cuckoo_question::first"][::core::mem::offset_of!(cuckoo_question, first) - 12usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_answer {
    pub sum: f64,
    pub highest: f32,
    pub own: f32,
    pub rank: u32,
    pub found: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_answer"][::core::mem::size_of::<cuckoo_answer>() - 24usize];
    ["Alignment of cuckoo_answer"][::core::mem::align_of::<cuckoo_answer>() - 8usize];
    ["Offset of field: cuckoo_answer::sum"][::core::mem::offset_of!(cuckoo_answer, sum) - 0usize];
    ["Offset of field: cuckoo_answer::highest"][::core::mem::offset_of!(cuckoo_answer, highest) - 8usize];
    ["Offset of field: cuckoo_answer::own"][::core::mem::offset_of!(cuckoo_answer, own) - 12usize];
    ["Offset of field: cuckoo_answer::rank"][::core::mem::offset_of!(cuckoo_answer, rank) - 16usize];
    ["Offset of field: cuckoo_answer::found"][::core::mem::offset_of!(cuckoo_answer, found) - 20usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_logprobs {
    pub logits: cuckoo_address,
    pub questions: cuckoo_address,
    pub answers: cuckoo_address,
    pub top: cuckoo_address,
    pub exponentials: cuckoo_address,
    pub cols: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_logprobs"][::core::mem::size_of::<cuckoo_logprobs>() - 48usize];
    ["Alignment of cuckoo_logprobs"][::core::mem::align_of::<cuckoo_logprobs>() - 8usize];
    ["Offset of field: cuckoo_logprobs::logits"][::core::mem::offset_of!(cuckoo_logprobs, logits) - 0usize];
    ["Offset of field: cuckoo_logprobs::questions"][::core::mem::offset_of!(cuckoo_logprobs, questions) - 8usize];
    ["Offset of field: cuckoo_logprobs::answers"][::core::mem::offset_of!(cuckoo_logprobs, answers) - 16usize];
    ["Offset of field: cuckoo_logprobs::top"][::core::mem::offset_of!(cuckoo_logprobs, top) - 24usize];
    ["Offset of field: cuckoo_logprobs::exponentials"]
        [::core::mem::offset_of!(cuckoo_logprobs, exponentials) - 32usize];
    ["Offset of field: cuckoo_logprobs::cols"][::core::mem::offset_of!(cuckoo_logprobs, cols) - 40usize];
    ["Offset of field: cuckoo_logprobs::padding"][::core::mem::offset_of!(cuckoo_logprobs, padding) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_routed {
    pub expert: u32,
    pub weight: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_routed"][::core::mem::size_of::<cuckoo_routed>() - 8usize];
    ["Alignment of cuckoo_routed"][::core::mem::align_of::<cuckoo_routed>() - 4usize];
    ["Offset of field: cuckoo_routed::expert"][::core::mem::offset_of!(cuckoo_routed, expert) - 0usize];
    ["Offset of field: cuckoo_routed::weight"][::core::mem::offset_of!(cuckoo_routed, weight) - 4usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_route {
    pub logits: cuckoo_address,
    pub out: cuckoo_address,
    pub rows: u32,
    pub cols: u32,
    pub used: u32,
    pub gating: u32,
    pub normalize: u32,
    pub scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_route"][::core::mem::size_of::<cuckoo_route>() - 40usize];
    ["Alignment of cuckoo_route"][::core::mem::align_of::<cuckoo_route>() - 8usize];
    ["Offset of field: cuckoo_route::logits"][::core::mem::offset_of!(cuckoo_route, logits) - 0usize];
    ["Offset of field: cuckoo_route::out"][::core::mem::offset_of!(cuckoo_route, out) - 8usize];
    ["Offset of field: cuckoo_route::rows"][::core::mem::offset_of!(cuckoo_route, rows) - 16usize];
    ["Offset of field: cuckoo_route::cols"][::core::mem::offset_of!(cuckoo_route, cols) - 20usize];
    ["Offset of field: cuckoo_route::used"][::core::mem::offset_of!(cuckoo_route, used) - 24usize];
    ["Offset of field: cuckoo_route::gating"][::core::mem::offset_of!(cuckoo_route, gating) - 28usize];
    ["Offset of field: cuckoo_route::normalize"][::core::mem::offset_of!(cuckoo_route, normalize) - 32usize];
    ["Offset of field: cuckoo_route::scale"][::core::mem::offset_of!(cuckoo_route, scale) - 36usize];
};
pub const cuckoo_no_token_CUCKOO_BROKEN: cuckoo_no_token = 4294967295;
pub const cuckoo_no_token_CUCKOO_NOTHING_ALLOWED: cuckoo_no_token = 4294967294;
pub type cuckoo_no_token = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct cuckoo_kv_copy {
    pub planes: [cuckoo_address; 4usize],
    pub packed: cuckoo_address,
    pub blocks: cuckoo_address,
    pub bytes: [u32; 4usize],
    pub layers: u32,
    pub cache_blocks: u32,
    pub count: u32,
    pub back: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of cuckoo_kv_copy"][::core::mem::size_of::<cuckoo_kv_copy>() - 80usize];
    ["Alignment of cuckoo_kv_copy"][::core::mem::align_of::<cuckoo_kv_copy>() - 8usize];
    ["Offset of field: cuckoo_kv_copy::planes"][::core::mem::offset_of!(cuckoo_kv_copy, planes) - 0usize];
    ["Offset of field: cuckoo_kv_copy::packed"][::core::mem::offset_of!(cuckoo_kv_copy, packed) - 32usize];
    ["Offset of field: cuckoo_kv_copy::blocks"][::core::mem::offset_of!(cuckoo_kv_copy, blocks) - 40usize];
    ["Offset of field: cuckoo_kv_copy::bytes"][::core::mem::offset_of!(cuckoo_kv_copy, bytes) - 48usize];
    ["Offset of field: cuckoo_kv_copy::layers"][::core::mem::offset_of!(cuckoo_kv_copy, layers) - 64usize];
    ["Offset of field: cuckoo_kv_copy::cache_blocks"][::core::mem::offset_of!(cuckoo_kv_copy, cache_blocks) - 68usize];
    ["Offset of field: cuckoo_kv_copy::count"][::core::mem::offset_of!(cuckoo_kv_copy, count) - 72usize];
    ["Offset of field: cuckoo_kv_copy::back"][::core::mem::offset_of!(cuckoo_kv_copy, back) - 76usize];
};
