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
