package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
	"lode/cmd/spec"
)

func (c *cli) dataCmd() *cobra.Command {
	return c.group("data", "Datasets: put, ls, show, get, cat, append, rm, gc",
		c.dataPut("put NAME FILE...", "Make a new version of files, or of stdin (-)", false),
		c.dataPut("append NAME FILE...", "Add files, or stdin (-), to the newest version", true),
		c.dataLs(), c.dataShow(), c.dataGet(), c.dataCat(), c.dataRm(), c.dataGC())
}

func (c *cli) dataPut(use, short string, add bool) *cobra.Command {
	o := api.PutOptions{Append: add}
	var records, shard string
	cmd := &cobra.Command{
		Use: use, Short: short, Args: atLeast(2),
		Long: short + `.

Files are split at the borders of records into shards. A folder stands for the
files in it, and globs may be quoted ('corpus/**/*.txt'). All of it becomes
visible at once, or nothing does.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := lode.ParseName(args[0])
			if err != nil {
				return err
			}
			if o.Records, err = api.ParseRecords(records); err != nil {
				return err
			}
			if shard != "" {
				if o.Shard, err = spec.ParseSize(shard); err != nil {
					return lode.Errorf(lode.Invalid, "--shard: %w", err).WithHint("as in 32MiB")
				}
			}
			client, err := c.api()
			if err != nil {
				return err
			}
			d, err := c.putArgs(cmd.Context(), client, name, o, args[1:])
			if err != nil {
				return err
			}
			t := &table{}
			t.add(string(d.Name), fmt.Sprintf("version %d", d.Version), plural(d.Shards, "shard"), size(d.Bytes), fmt.Sprintf("%s %s", count(d.Count), recordWord(d.Records)))
			return c.show(d, t)
		},
	}
	cmd.Flags().StringVar(&records, "records", "", "lines, csv, ndjson, files or fixed:N (default: by suffix)")
	cmd.Flags().StringVar(&shard, "shard", "", "target size of a shard (default 32MiB)")
	cmd.Flags().IntVar(&o.Copies, "copies", 0, "replicas (default 2, on one node 1)")
	return cmd
}

func recordWord(r lode.Records) string {
	switch {
	case r == lode.RecordsLines, r == lode.RecordsFiles:
		return string(r)
	case r == lode.RecordsCSV:
		return "csv rows"
	}
	return "records"
}

func (c *cli) putArgs(ctx context.Context, client *api.Client, name lode.Name, o api.PutOptions, args []string) (api.Dataset, error) {
	if len(args) == 1 && args[0] == "-" {
		return client.PutStream(ctx, name, o, string(name), c.in)
	}
	wd, err := os.Getwd()
	if err != nil {
		return api.Dataset{}, lode.Errorf(lode.Invalid, "%w", err)
	}
	files, err := spec.Globs(wd, args)
	if err != nil {
		return api.Dataset{}, err
	}
	if o.Records == "" && !o.Append {
		o.Records = spec.RecordsOf(files)
	}
	return c.put(ctx, client, name, o, namedFiles(wd, files))
}

// localFile is a file with the name that it has in the dataset.
type localFile struct {
	path, name string
}

// namedFiles names files relative to dir, or by their last element if they are
// elsewhere.
func namedFiles(dir string, files []string) []localFile {
	out := make([]localFile, len(files))
	for i, f := range files {
		name, err := filepath.Rel(dir, f)
		if err != nil || strings.HasPrefix(name, "..") {
			name = filepath.Base(f)
		}
		out[i] = localFile{f, filepath.ToSlash(name)}
	}
	return out
}

// put uploads files with a progress bar.
func (c *cli) put(ctx context.Context, client *api.Client, name lode.Name, o api.PutOptions, files []localFile) (api.Dataset, error) {
	var total int64
	sizes := make([]int64, len(files))
	for i, f := range files {
		info, err := os.Stat(f.path)
		if err != nil {
			return api.Dataset{}, lode.Errorf(lode.NotFound, "%w", err)
		}
		sizes[i] = info.Size()
		total += info.Size()
	}
	bar := c.newBar("data "+string(name), total, true)
	defer bar.end()
	up := &upload{files: files, sizes: sizes, bar: bar}
	d, err := client.PutDataset(ctx, name, o, up)
	return d, errors.Join(err, up.close())
}

// upload opens one file after the other.
type upload struct {
	files []localFile
	sizes []int64
	next  int
	open  *os.File
	bar   *bar
}

var _ api.Files = (*upload)(nil)

func (u *upload) Next() (string, int64, io.Reader, error) {
	if err := u.close(); err != nil {
		return "", 0, nil, err
	}
	if u.next == len(u.files) {
		return "", 0, nil, io.EOF
	}
	f := u.files[u.next]
	var err error
	if u.open, err = os.Open(f.path); err != nil {
		return "", 0, nil, lode.Errorf(lode.NotFound, "%w", err)
	}
	n := u.sizes[u.next]
	u.next++
	// A file that grows meanwhile is read as far as it was.
	return f.name, n, io.LimitReader(&countingReader{u.open, u.bar.add}, n), nil
}

func (u *upload) close() error {
	if u.open == nil {
		return nil
	}
	f := u.open
	u.open = nil
	if err := f.Close(); err != nil {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	return nil
}

func (c *cli) dataLs() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List datasets", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			all, err := api.All(func(p api.Page) (api.List[api.Dataset], error) { return client.ListDatasets(cmd.Context(), p) })
			if err != nil {
				return err
			}
			t := &table{head: []string{"NAME", "VERSION", "RECORDS", "COUNT", "SHARDS", "SIZE", "AGE"}, none: "no datasets; lode data put NAME FILES makes one"}
			for _, d := range all {
				t.add(string(d.Name), fmt.Sprint(d.Version), string(d.Records), count(d.Count), fmt.Sprint(d.Shards), size(d.Bytes), ago(d.Created))
			}
			return c.show(api.List[api.Dataset]{Items: orEmpty(all)}, t)
		},
	}
}

func (c *cli) dataShow() *cobra.Command {
	var version int
	var shards bool
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a dataset and its versions", Args: exactly(1), ValidArgsFunction: c.completeNames(api.KindDataset),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, client, err := c.named(args[0])
			if err != nil {
				return err
			}
			if shards {
				m, err := client.GetManifest(cmd.Context(), name, version)
				if err != nil {
					return err
				}
				t := &table{head: []string{"SHARD", "SIZE", "RECORDS", "DIGEST"}}
				for i, s := range m.Shards {
					t.add(fmt.Sprint(i+1), size(s.Bytes), count(s.Count), s.Digest.Short())
				}
				return c.show(m, t)
			}
			d, err := client.GetDataset(cmd.Context(), name, version)
			if err != nil {
				return err
			}
			t := &table{}
			t.add(string(d.Name), "dataset")
			datasetRows(t, &d)
			return c.show(d, t)
		},
	}
	cmd.Flags().IntVar(&version, "version", 0, "version (default: the newest)")
	cmd.Flags().BoolVar(&shards, "shards", false, "list the shards")
	return cmd
}

func (c *cli) dataCat() *cobra.Command {
	var o api.ReadOptions
	cmd := &cobra.Command{
		Use: "cat NAME", Short: "Print a dataset's bytes", Args: exactly(1), ValidArgsFunction: c.completeNames(api.KindDataset),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, client, err := c.named(args[0])
			if err != nil {
				return err
			}
			v, err := client.ReadDataset(cmd.Context(), name, o)
			if err != nil {
				return err
			}
			defer v.Body.Close()
			if _, err := io.Copy(c.out, v.Body); err != nil {
				return lode.AsError(err)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&o.Version, "version", 0, "version (default: the newest)")
	cmd.Flags().IntVar(&o.Shard, "shard", 0, "this shard alone; the first is 1")
	return cmd
}

func (c *cli) dataGet() *cobra.Command {
	var version int
	cmd := &cobra.Command{
		Use: "get NAME [DIR]", Short: "Write a dataset's files into a folder", Args: between(1, 2), ValidArgsFunction: c.completeNames(api.KindDataset),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := lode.ParseName(args[0])
			if err != nil {
				return err
			}
			dir := string(name)
			if len(args) > 1 {
				dir = args[1]
			}
			client, err := c.api()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return lode.Errorf(lode.Invalid, "%w", err)
			}
			files, bytes, err := getFiles(cmd.Context(), client, name, version, dir)
			if err != nil {
				return err
			}
			c.say("%s, %s, in %s", plural(files, "file"), size(bytes), dir)
			return nil
		},
	}
	cmd.Flags().IntVar(&version, "version", 0, "version (default: the newest)")
	return cmd
}

// getFiles writes files below dir and nowhere else, whatever their names are.
func getFiles(ctx context.Context, client *api.Client, name lode.Name, version int, dir string) (files int, bytes int64, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, 0, lode.Errorf(lode.Invalid, "%w", err)
	}
	defer root.Close()
	err = client.ReadFiles(ctx, name, version, func(file string, _ int64, r io.Reader) error {
		file = strings.TrimPrefix(path.Clean("/"+file), "/")
		if file == "" {
			return lode.Errorf(lode.Invalid, "a file of the dataset has no name")
		}
		if err := root.MkdirAll(filepath.FromSlash(path.Dir(file)), 0o755); err != nil {
			return lode.Errorf(lode.Invalid, "%w", err)
		}
		w, err := root.Create(filepath.FromSlash(file))
		if err != nil {
			return lode.Errorf(lode.Invalid, "%w", err)
		}
		n, err := io.Copy(w, r)
		if cerr := w.Close(); err == nil {
			err = cerr
		}
		files, bytes = files+1, bytes+n
		return err
	})
	if err != nil {
		err = lode.AsError(err)
	}
	return files, bytes, err
}

func (c *cli) dataRm() *cobra.Command {
	var version int
	cmd := &cobra.Command{
		Use: "rm NAME", Short: "Remove a dataset, or one old version of it", Args: exactly(1), ValidArgsFunction: c.completeNames(api.KindDataset),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, client, err := c.named(args[0])
			if err != nil {
				return err
			}
			if version > 0 {
				return client.RemoveVersion(cmd.Context(), name, version)
			}
			d, err := client.GetName(cmd.Context(), name)
			if err != nil {
				return err
			}
			if d.Kind != api.KindDataset {
				return lode.Errorf(lode.Invalid, "%s is a %s", name, d.Kind).WithHint("lode rm %s removes it", name)
			}
			r, err := client.RemoveName(cmd.Context(), name, api.RemoveOptions{})
			if err != nil {
				return err
			}
			return c.showRemoved(r, false, string(name))
		},
	}
	cmd.Flags().IntVar(&version, "version", 0, "this version alone")
	return cmd
}

func (c *cli) dataGC() *cobra.Command {
	return &cobra.Command{
		Use: "gc", Short: "Free what no kept version needs", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			v, err := client.CollectDatasets(cmd.Context())
			if err != nil {
				return err
			}
			t := &table{}
			t.add(fmt.Sprintf("freed %s: %s, %s", size(v.Bytes), plural(v.Versions, "version"), plural(v.Blobs, "blob")))
			return c.show(v, t)
		},
	}
}
