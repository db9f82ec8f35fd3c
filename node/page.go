package node

import (
	"cmp"
	"slices"

	"lode/api"
)

// page sorts all by key and cuts the page out.
func page[T any](all []T, p api.Page, key func(T) string) api.List[T] {
	slices.SortFunc(all, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
	return cut(all, p, key, func(k, after string) bool { return k > after })
}

// pageDown is page from the greatest key to the least: the newest id first.
func pageDown[T any](all []T, p api.Page, key func(T) string) api.List[T] {
	slices.SortFunc(all, func(a, b T) int { return cmp.Compare(key(b), key(a)) })
	return cut(all, p, key, func(k, after string) bool { return k < after })
}

func cut[T any](all []T, p api.Page, key func(T) string, behind func(k, after string) bool) api.List[T] {
	if p.After != "" {
		i := slices.IndexFunc(all, func(t T) bool { return behind(key(t), p.After) })
		if i < 0 {
			i = len(all)
		}
		all = all[i:]
	}
	l := api.List[T]{Items: all}
	if p.Limit > 0 && len(all) > p.Limit {
		l.Items = all[:p.Limit]
		l.Next = key(l.Items[p.Limit-1])
	}
	if l.Items == nil {
		l.Items = []T{}
	}
	return l
}
