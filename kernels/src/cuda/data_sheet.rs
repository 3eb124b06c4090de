//! What makers say that their GPUs can do, by the name that the driver gives. Benches print shares of it beside shares of what
//! was measured. All rates are without sparsity; those of matrices are with sums in single precision.

/// A GPU's figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DataSheet {
    /// What its name contains.
    pub name: &'static str,
    /// Bytes a second from and to its memory.
    pub bytes_per_s: f64,
    /// Operations a second on matrices of bf16; a multiply-add counts as two.
    pub bf16_per_s: f64,
    /// The same on 8-bit integers.
    pub int8_per_s: f64,
    /// The same on FP8; `None` where it has no such units.
    pub fp8_per_s: Option<f64>,
    /// Where that is written.
    pub source: &'static str,
}

const AMPERE: &str = "NVIDIA A100 Tensor Core GPU data sheet (2021)";
const GA102: &str = "NVIDIA Ampere GA102 GPU architecture, white paper V2, table 9";
const ADA: &str = "NVIDIA Ada GPU architecture, white paper V2, appendix A";
const HOPPER: &str = "NVIDIA H100 Tensor Core GPU data sheet";
const HOPPER_200: &str = "NVIDIA H200 Tensor Core GPU data sheet";
const BLACKWELL: &str = "NVIDIA RTX Blackwell GPU architecture, white paper V1.1, appendix A";

/// GB/s, then tera-operations a second of bf16, int8 and FP8 (0: none).
const fn sheet(name: &'static str, gb: f64, [bf16, int8, fp8]: [f64; 3], source: &'static str) -> DataSheet {
    DataSheet {
        name,
        bytes_per_s: gb * 1e9,
        bf16_per_s: bf16 * 1e12,
        int8_per_s: int8 * 1e12,
        fp8_per_s: if fp8 > 0.0 { Some(fp8 * 1e12) } else { None },
        source,
    }
}

/// More telling names stand before those that they contain.
const SHEETS: [DataSheet; 17] = [
    sheet("H200 NVL", 4_800.0, [835.5, 1_670.5, 1_670.5], HOPPER_200),
    sheet("H200", 4_800.0, [989.0, 1_979.0, 1_979.0], HOPPER_200),
    sheet("H100 PCIe", 2_000.0, [756.0, 1_513.0, 1_513.0], HOPPER),
    sheet("H100 NVL", 3_900.0, [835.5, 1_670.5, 1_670.5], HOPPER),
    sheet("H100 80GB HBM3", 3_350.0, [989.0, 1_979.0, 1_979.0], HOPPER),
    sheet("A100-SXM4-80GB", 2_039.0, [312.0, 624.0, 0.0], AMPERE),
    sheet("A100 80GB PCIe", 1_935.0, [312.0, 624.0, 0.0], AMPERE),
    sheet("A100-SXM4-40GB", 1_555.0, [312.0, 624.0, 0.0], AMPERE),
    sheet("A100-PCIE-40GB", 1_555.0, [312.0, 624.0, 0.0], AMPERE),
    sheet("RTX 3090 Ti", 1_008.0, [80.0, 320.0, 0.0], GA102),
    sheet("RTX 3090", 936.0, [71.0, 284.0, 0.0], GA102),
    sheet("RTX 3080 Ti", 912.0, [68.0, 273.0, 0.0], GA102),
    sheet("RTX 4090", 1_008.0, [165.2, 660.6, 330.3], ADA),
    sheet("RTX 4080 SUPER", 736.3, [104.4, 417.6, 208.8], ADA),
    sheet("RTX 4080", 716.8, [97.5, 389.9, 194.9], ADA),
    sheet("RTX 5090", 1_792.0, [209.5, 838.0, 419.0], BLACKWELL),
    sheet("RTX 5080", 960.0, [112.6, 450.2, 225.1], BLACKWELL),
];

impl DataSheet {
    /// That of the GPU called `name`, where it is known.
    pub fn of(name: &str) -> Option<Self> {
        // A laptop's part is called like the card that it is not.
        let is = |sheet: &&Self| name.contains(sheet.name) && !name.contains("Laptop");
        SHEETS.iter().find(is).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_the_driver_gives_them_are_found() {
        let rate = |name: &str| DataSheet::of(name).map(|sheet| sheet.bytes_per_s / 1e9);
        assert_eq!(rate("NVIDIA H200"), Some(4_800.0));
        assert_eq!(rate("NVIDIA H100 80GB HBM3"), Some(3_350.0));
        assert_eq!(rate("NVIDIA H100 PCIe"), Some(2_000.0));
        assert_eq!(rate("NVIDIA A100-SXM4-40GB"), Some(1_555.0));
        assert_eq!([rate("NVIDIA GeForce RTX 3090 Ti"), rate("NVIDIA GeForce RTX 3090")], [Some(1_008.0), Some(936.0)]);
        assert_eq!([rate("NVIDIA GeForce RTX 4090 Laptop GPU"), rate("GeForce GT 710"), rate("")], [None; 3]);
    }

    #[test]
    fn no_name_hides_behind_one_that_it_contains() {
        for sheet in SHEETS {
            assert_eq!(DataSheet::of(sheet.name), Some(sheet), "{}", sheet.name);
            assert!(sheet.bf16_per_s < sheet.int8_per_s && sheet.fp8_per_s.is_none_or(|r| r <= sheet.int8_per_s));
        }
    }
}
