"""A run or a sweep as one HTML page: `pages` fills the templates, `report_figures` draws what other rooms do not."""
