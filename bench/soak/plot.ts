/** A soak as one plot: memory, counts and the event loop over time. */
import * as echarts from 'echarts';
import type { Sample } from './samples.js';

const [WIDTH, HEIGHT] = [1000, 900];

const PANELS: readonly { readonly title: string; readonly unit: string; readonly names: readonly (keyof Sample)[] }[] =
  [
    { title: 'Memory', unit: 'MB', names: ['rss', 'native', 'heap', 'external'] },
    { title: 'Threads, file descriptors, handles', unit: '', names: ['threads', 'descriptors', 'handles'] },
    { title: 'Delay of the event loop', unit: 'ms', names: ['delay', 'lateDelay'] },
  ];

const NAMES: Partial<Record<keyof Sample, string>> = { rss: 'RSS', delay: 'median', lateDelay: '99th percentile' };

/** The plot as SVG. @param warm minutes of warm-up, which are shaded */
export function plot(samples: readonly Sample[], warm: number): string {
  const chart = echarts.init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
  const top = (i: number) => (100 * i) / PANELS.length;
  chart.setOption({
    animation: false,
    backgroundColor: '#fff',
    title: PANELS.map(({ title }, i) => ({
      text: title,
      left: '7%',
      top: `${top(i) + 0.5}%`,
      textStyle: { fontSize: 15 },
    })),
    legend: PANELS.map(({ names }, i) => ({
      data: names.map((name) => NAMES[name] ?? name),
      right: '3%',
      top: `${top(i) + 0.5}%`,
    })),
    grid: PANELS.map((_, i) => ({ left: '7%', right: '3%', top: `${top(i) + 5}%`, height: '22%' })),
    xAxis: PANELS.map((_, gridIndex) => ({
      gridIndex,
      type: 'value',
      name: 'minutes',
      nameLocation: 'middle',
      nameGap: 24,
    })),
    yAxis: PANELS.map(({ unit }, gridIndex) => ({ gridIndex, type: 'value', name: unit, min: 0 })),
    series: PANELS.flatMap(({ names }, i) =>
      names.map((name, n) => ({
        type: 'line',
        name: NAMES[name] ?? name,
        xAxisIndex: i,
        yAxisIndex: i,
        showSymbol: false,
        data: samples.map((one) => [one.minutes, one[name]]),
        ...(n === 0 && {
          markArea: { silent: true, itemStyle: { color: '#0001' }, data: [[{ xAxis: 0 }, { xAxis: warm }]] },
        }),
      })),
    ),
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}
