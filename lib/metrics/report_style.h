#ifndef COX_LIB_METRICS_REPORT_STYLE_H_
#define COX_LIB_METRICS_REPORT_STYLE_H_

namespace cox {

// The style sheet of report.html. Colours are variables so that the dark
// scheme only redefines them; series colours differ in lightness too, for
// readers who cannot tell hues apart.
inline constexpr char kReportStyle[] = R"css(
:root{color-scheme:light dark;--bg:#f7f8fa;--card:#fff;--ink:#1c2430;
--soft:#5b6675;--faint:#8a94a3;--rule:#e3e7ec;--grid:#edf0f3;--accent:#1f5fbf;
--c0:#1f5fbf;--c1:#d9822b;--c2:#16876b;--c3:#8a4fb5;--good:#e8f1fd}
@media (prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1a2028;
--ink:#e4e8ee;--soft:#a2adbb;--faint:#7c8796;--rule:#2c343f;--grid:#262e38;
--accent:#7db0f5;--c0:#7db0f5;--c1:#f0a862;--c2:#5cc9a7;--c3:#c79be8;
--good:#1d2c40}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:40px 28px 72px}
h1{font-size:28px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em;
overflow-wrap:anywhere}
h2{font-size:18px;margin:44px 0 14px}
h3{font-size:13px;margin:26px 0 10px;color:var(--soft);font-weight:600;
text-transform:uppercase;letter-spacing:.06em}
p{margin:0 0 12px;max-width:76ch}
.kicker{color:var(--accent);font-weight:600;font-size:13px;margin:0 0 8px}
.summary{color:var(--soft);font-size:16px}
.note{color:var(--faint);font-size:13px;margin-top:10px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(168px,1fr));
gap:1px;margin:24px 0 0;background:var(--card);border:1px solid var(--rule);
border-radius:10px;overflow:hidden}
.facts div{box-shadow:0 0 0 1px var(--rule);padding:11px 14px}
.facts dt{color:var(--faint);font-size:12px}
.facts dd{margin:1px 0 0;font-weight:600;overflow-wrap:anywhere;
font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);
border-radius:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:11px 16px;border-bottom:1px solid var(--rule);
vertical-align:top}
tbody tr:last-child>*{border-bottom:0}
thead th{font-size:12.5px;color:var(--soft);font-weight:600;
white-space:nowrap}
thead .unit{font-weight:400}
tbody th{font-weight:600;white-space:nowrap}
.best{background:var(--good)}
.best .value{font-weight:700}
.value{font-size:16px}
.ci{color:var(--faint);font-size:12.5px;white-space:nowrap;margin-left:6px}
.interval{display:block;width:110px;height:12px;margin-top:4px}
.interval .rail{stroke:var(--rule);stroke-width:2}
.interval .span{stroke:var(--c0);stroke-width:3;stroke-linecap:round}
.interval circle{fill:var(--card);stroke:var(--c0);stroke-width:2}
.charts{display:grid;gap:16px;
grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
figure{margin:0;background:var(--card);border:1px solid var(--rule);
border-radius:10px;padding:14px 14px 8px}
figcaption{font-size:13.5px;margin:0 0 4px 4px;display:flex;flex-wrap:wrap;
gap:2px 8px;align-items:baseline}
figcaption .title{font-weight:600}
.unit{color:var(--faint);font-size:12.5px}
.legend{margin-left:auto;display:flex;flex-wrap:wrap;gap:2px 12px;
color:var(--soft);font-size:12.5px}
.key svg{margin-right:5px;vertical-align:middle}
.chart{display:block;width:100%;height:auto}
.tick,.label{fill:var(--faint);font-size:11.5px;
font-variant-numeric:tabular-nums}
.grid{stroke:var(--grid)}
.axis{stroke:var(--rule)}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.raw{opacity:.28;stroke-width:1.2}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}
.c3{stroke:var(--c3)}
.dot{fill:var(--card);stroke-width:1.8}
.hover rect{fill:transparent}
.hover line,.hover circle{opacity:0;pointer-events:none}
.hover line{stroke:var(--faint);stroke-dasharray:2 3}
.hover circle{fill:var(--card);stroke-width:2}
.hover:hover line,.hover:hover circle{opacity:1}
.samples{table-layout:fixed;min-width:760px}
.samples td{width:37%;overflow-wrap:anywhere;white-space:pre-wrap}
.samples td:first-child{width:26%;color:var(--soft)}
.score{display:inline-block;margin-top:6px;padding:0 8px;border-radius:9px;
border:1px solid var(--rule);color:var(--soft);font-size:12.5px;
white-space:nowrap}
details{margin-top:18px}
summary{cursor:pointer;color:var(--accent);font-weight:600;font-size:14px;
margin-bottom:12px}
pre{background:var(--card);border:1px solid var(--rule);border-radius:10px;
padding:14px 16px;overflow-x:auto;font-size:12.5px;line-height:1.5;
font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
footer{margin-top:48px;color:var(--faint);font-size:12.5px}
@media print{body{background:#fff}main{max-width:none;padding:0}
figure,.scroll{break-inside:avoid}}
)css";

}  // namespace cox

#endif  // COX_LIB_METRICS_REPORT_STYLE_H_
