/** The growth of the head's cost as one plot. */
import * as echarts from 'echarts';
import type { Point, SERIES } from './scaling.js';

const WIDTH = 1000;
const HEIGHT = 720;

type Line = { readonly name: string; readonly series: keyof typeof SERIES; readonly y: (point: Point) => number };

interface Panel {
  readonly title: string;
  readonly xName: string;
  readonly yName: string;
  readonly yAxis: object;
  readonly lines: readonly Line[];
}

const ms = ({ ms }: Point) => ms.median;
const share = ({ shares }: Point) => shares.registers.median;
const WIDE = 'width 1280, no class token';
const NARROW = 'width 1024';

const PANELS: readonly Panel[] = [
  {
    title: 'One image',
    xName: 'rows',
    yName: 'ms',
    yAxis: { type: 'log' },
    lines: [
      { name: NARROW, series: 'rows', y: ms },
      { name: WIDE, series: 'qwen', y: ms },
    ],
  },
  {
    title: 'Share of the multiply-add peak',
    xName: 'rows',
    yName: '',
    yAxis: { min: 0, max: 1 },
    lines: [
      { name: NARROW, series: 'rows', y: share },
      { name: WIDE, series: 'qwen', y: share },
    ],
  },
  {
    title: 'Several images of 577 rows',
    xName: 'images',
    yName: 'ms per image',
    yAxis: { min: 0 },
    lines: [{ name: NARROW, series: 'batch', y: ({ ms, images }) => ms.median / images }],
  },
  {
    title: 'Kept patches and text tokens (577 rows)',
    xName: 'kept patches, text tokens',
    yName: 'ms',
    yAxis: { min: 0 },
    lines: [
      { name: 'kept patches', series: 'kept', y: ms },
      { name: 'text tokens', series: 'text', y: ms },
    ],
  },
];

/** The plot as SVG. */
export function plot(points: readonly Point[]): string {
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
  // Two by two; percent of the plot.
  const place = (i: number) => ({ left: 50 * (i % 2), top: 50 * Math.floor(i / 2) });
  const axis = { nameLocation: 'middle', nameGap: 28 } as const;
  chart.setOption({
    animation: false,
    backgroundColor: '#fff',
    title: PANELS.map(({ title }, i) => ({
      text: title,
      left: `${place(i).left + 25}%`,
      top: `${place(i).top + 1}%`,
      textAlign: 'center',
      textStyle: { fontSize: 15 },
    })),
    grid: PANELS.map((_, i) => ({
      left: `${place(i).left + 7}%`,
      top: `${place(i).top + 10}%`,
      width: '40%',
      height: '29%',
    })),
    xAxis: PANELS.map(({ xName }, gridIndex) => ({ ...axis, gridIndex, type: 'log', logBase: 2, name: xName })),
    yAxis: PANELS.map(({ yName, yAxis }, gridIndex) => ({ ...axis, nameGap: 40, gridIndex, name: yName, ...yAxis })),
    legend: PANELS.map(({ lines }, i) => ({
      data: lines.map(({ name }) => name),
      itemGap: 20,
      left: `${place(i).left + 9}%`,
      top: `${place(i).top + 5}%`,
    })),
    series: PANELS.flatMap(({ lines }, i) =>
      lines.map(({ name, series, y }) => ({
        type: 'line',
        name,
        xAxisIndex: i,
        yAxisIndex: i,
        symbolSize: 7,
        data: points.filter((point) => point.series === series).map((point) => [point.x, y(point)]),
      })),
    ),
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}
