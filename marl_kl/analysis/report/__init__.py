"""A run or a sweep on one page: what stands on it (`pages`), its `pictures`, and how a page is made (`html_page`)."""
