import { ImageProcessor } from '../../vision/image-processor.js';
import { type ImageReader, wholeStrip } from './reader.js';

/** LLaVA: one tile for each image. */
export async function llavaImages(folder: string): Promise<ImageReader> {
  const processor = await ImageProcessor.open(folder);
  return {
    async read(source) {
      const rgb = await processor.rgb(source);
      return {
        inputs: { pixelValues: processor.normalize(rgb) },
        strips: async ({ tiles: [tile] }) => [wholeStrip(rgb, tile)],
      };
    },
  };
}
