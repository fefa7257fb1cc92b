/** A size as configurations write it: one edge, [height, width], or named edges. */
export type ConfiguredSize =
  | number
  | readonly number[]
  | {
      readonly height?: number | null;
      readonly width?: number | null;
      readonly shortest_edge?: number | null;
      readonly longest_edge?: number | null;
      readonly max_height?: number | null;
      readonly max_width?: number | null;
    };

/**
 * The fields of `preprocessor_config.json` that {@link ImageProcessor} reads. A missing field has Hugging Face's default for the type.
 * Null means false in a field that is true or false; in any other field that is needed it is refused.
 */
export interface ImageProcessorConfig {
  /** `CLIPImageProcessor`, ...; a missing type is taken for CLIP's. */
  readonly image_processor_type?: string | null;
  /** The old name of the same. */
  readonly feature_extractor_type?: string | null;
  readonly do_resize?: boolean | null;
  readonly size?: ConfiguredSize | null;
  /** Whether a `size` of one number is that of both edges; else it is the shortest edge. */
  readonly default_to_square?: boolean | null;
  /** Pillow's number: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming. */
  readonly resample?: number | null;
  readonly do_center_crop?: boolean | null;
  readonly crop_size?: ConfiguredSize | null;
  readonly do_rescale?: boolean | null;
  readonly rescale_factor?: number | null;
  readonly do_normalize?: boolean | null;
  readonly image_mean?: number | readonly number[] | null;
  readonly image_std?: number | readonly number[] | null;
  /** LLaVA: to a square of the mean colour, first. Others: zeros to the right and below, up to `pad_size`, last. */
  readonly do_pad?: boolean | null;
  readonly pad_size?: ConfiguredSize | null;
}
