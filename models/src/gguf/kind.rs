//! The storage types of GGUF tensors: names and block sizes only; how a block is decoded is not known here.

use std::fmt;

macro_rules! types {
    ($($variant:ident = $code:literal, $name:literal, $block:literal elements in $bytes:literal bytes;)*) => {
        /// How a tensor's elements are stored. Codes, block sizes and byte counts are those of ggml's `type_traits`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(non_camel_case_types)] // ggml's own spelling, which users know.
        pub enum GgmlType {
            $(#[doc = concat!($name, ": ", stringify!($block), " elements in ", stringify!($bytes), " bytes.")] $variant,)*
        }

        impl GgmlType {
            /// Every type, in the order of the codes.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$variant),*];

            /// The type with this code in a file; `None` for codes that are unknown or were withdrawn.
            pub fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// The type's code in a file.
            pub fn code(self) -> u32 {
                match self { $(Self::$variant => $code,)* }
            }

            /// The type's usual name, such as `Q4_1`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Elements in a block. A row must be a whole number of blocks.
            pub fn block_elements(self) -> u64 {
                match self { $(Self::$variant => $block,)* }
            }

            /// Bytes of a block.
            pub fn block_bytes(self) -> u64 {
                match self { $(Self::$variant => $bytes,)* }
            }
        }
    };
}

types! {
    F32 = 0, "F32", 1 elements in 4 bytes;
    F16 = 1, "F16", 1 elements in 2 bytes;
    Q4_0 = 2, "Q4_0", 32 elements in 18 bytes;
    Q4_1 = 3, "Q4_1", 32 elements in 20 bytes;
    Q5_0 = 6, "Q5_0", 32 elements in 22 bytes;
    Q5_1 = 7, "Q5_1", 32 elements in 24 bytes;
    Q8_0 = 8, "Q8_0", 32 elements in 34 bytes;
    Q8_1 = 9, "Q8_1", 32 elements in 36 bytes;
    Q2_K = 10, "Q2_K", 256 elements in 84 bytes;
    Q3_K = 11, "Q3_K", 256 elements in 110 bytes;
    Q4_K = 12, "Q4_K", 256 elements in 144 bytes;
    Q5_K = 13, "Q5_K", 256 elements in 176 bytes;
    Q6_K = 14, "Q6_K", 256 elements in 210 bytes;
    Q8_K = 15, "Q8_K", 256 elements in 292 bytes;
    IQ2_XXS = 16, "IQ2_XXS", 256 elements in 66 bytes;
    IQ2_XS = 17, "IQ2_XS", 256 elements in 74 bytes;
    IQ3_XXS = 18, "IQ3_XXS", 256 elements in 98 bytes;
    IQ1_S = 19, "IQ1_S", 256 elements in 50 bytes;
    IQ4_NL = 20, "IQ4_NL", 32 elements in 18 bytes;
    IQ3_S = 21, "IQ3_S", 256 elements in 110 bytes;
    IQ2_S = 22, "IQ2_S", 256 elements in 82 bytes;
    IQ4_XS = 23, "IQ4_XS", 256 elements in 136 bytes;
    I8 = 24, "I8", 1 elements in 1 bytes;
    I16 = 25, "I16", 1 elements in 2 bytes;
    I32 = 26, "I32", 1 elements in 4 bytes;
    I64 = 27, "I64", 1 elements in 8 bytes;
    F64 = 28, "F64", 1 elements in 8 bytes;
    IQ1_M = 29, "IQ1_M", 256 elements in 56 bytes;
    BF16 = 30, "BF16", 1 elements in 2 bytes;
    TQ1_0 = 34, "TQ1_0", 256 elements in 54 bytes;
    TQ2_0 = 35, "TQ2_0", 256 elements in 66 bytes;
    MXFP4 = 39, "MXFP4", 32 elements in 17 bytes;
    NVFP4 = 40, "NVFP4", 64 elements in 36 bytes;
    Q1_0 = 41, "Q1_0", 128 elements in 18 bytes;
    Q2_0 = 42, "Q2_0", 64 elements in 18 bytes;
}

impl GgmlType {
    /// The bytes of a tensor of this shape (`dims[0]` contiguous); `None` when a row is no whole number of blocks or
    /// the count overflows.
    pub fn tensor_bytes(self, dims: &[u64]) -> Option<u64> {
        let columns = *dims.first()?;
        if columns % self.block_elements() != 0 {
            return None;
        }
        let row_bytes = (columns / self.block_elements()).checked_mul(self.block_bytes())?;
        // Elements are checked too: a reader must be able to count them without overflow.
        dims.iter().try_fold(1u64, |elements, dim| elements.checked_mul(*dim))?;
        dims[1..].iter().try_fold(row_bytes, |bytes, dim| bytes.checked_mul(*dim))
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
